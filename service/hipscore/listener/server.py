"""The process ``hipscore listen``: what is offered, starting, and stopping in an orderly way."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from pydicom.uid import UID
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from hipscore import inference, queue
from hipscore.domain import ModelCard
from hipscore.keeping import SOP_CLASSES, transfer_syntaxes
from hipscore.listener.door import open_to_the_network, peers
from hipscore.listener.events import Reports
from hipscore.listener.reception import MAX_PDU, Reception
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import engine as database

ACSE_TIMEOUT = 15.0
#: connections, associations or not, beyond this many per association that is served are closed
CONNECTIONS_PER_ASSOCIATION = 4
#: how often the accepting thread looks whether it is to end, seconds
POLL_SECONDS = 0.2
#: how often the age of connections is looked at, seconds
WATCH_SECONDS = 1.0
#: seconds that open associations get to finish when the listener stops
DRAIN_SECONDS = 10.0

log = logging.getLogger(__name__)


class ListenerError(Exception):
    """The listener cannot start; the message says why and what to do."""


def serve(
    settings: Settings,
    *,
    stop: threading.Event,
    ready: Callable[[int], None] | None = None,
    card: ModelCard | None = None,
) -> None:
    """Listen until ``stop`` is set, then let open associations finish (bounded).

    Parameters
    ----------
    settings
        Where to listen, the data directory, the database and the broker.
    stop
        Set it to end.
    ready
        Called with the port once the listener accepts connections.
    card
        The model bundle that new jobs are opened for; default: the one in the settings.

    Raises
    ------
    ListenerError
        If the address cannot be bound, or would be open to the network without any peer.
    hipscore.inference.BundleError
        If ``card`` is not given and the bundle is not usable.
    """
    if open_to_the_network(settings) and not peers(settings):
        msg = (
            f"listening on {settings.dicom_host} needs peers: set HIPSCORE_SENDERS to "
            "AET@HOST of whoever may send (or *@0.0.0.0/0 for anyone)"
        )
        raise ListenerError(msg)
    engine = database.connect(settings.database)
    try:
        reception = Reception(
            settings,
            card=card or inference.open_bundle(settings.bundle_dir).card,
            sessions=database.sessions(engine),
            spool=Spool(settings.data_dir / "spool"),
            broker=queue.publisher(settings.broker),
        )
        reports = Reports(settings, database.sessions(engine), reception.door)
        server = _start(settings, reception, reports)
        port = int(server.server_address[1])
        log.info("listening as %s on %s port %d", settings.ae_title, settings.dicom_host, port)
        try:
            if ready is not None:
                ready(port)
            while not stop.wait(WATCH_SECONDS):
                _end_the_overdue(server, reception, settings.association_seconds)
        finally:
            _stop(server)
            log.info("listener stopped")
    finally:
        engine.dispose()


class _Handler(RequestHandler):
    """Gives every association our own kind of connection."""

    server: _Server

    def _create_association(self) -> Association:
        association = super()._create_association()
        client = cast("socket.socket", self.request)
        # Nagle's algorithm would hold each answer back for up to 40 ms.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A sender that falls silent in mid-PDU, or does not read, must not hold a thread.
        whole, part = divmod(self.server.idle_seconds, 1)
        patience = struct.pack("@ll", int(whole), max(1, int(part * 1e6)))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        connection = self.server.reception.socket(association, client)
        association.dul.socket = connection
        # Every socket announces itself there (Evt5); the second would be one too many.
        association.dul.event_queue.get_nowait()
        connection.spare(association)
        connection.guard(association)
        return association


class _Server(ThreadedAssociationServer):
    """Several processes may listen on one port; the kernel shares the connections out."""

    def __init__(
        self, *arguments: Any, reception: Reception, settings: Settings, **more: Any
    ) -> None:
        self.reception = reception
        self.idle_seconds = settings.idle_seconds
        self._shared = settings.listeners > 1
        self._most = CONNECTIONS_PER_ASSOCIATION * settings.max_associations
        super().__init__(*arguments, **more)

    def server_bind(self) -> None:
        """Bind, with SO_REUSEPORT where several processes listen (socket(7))."""
        if self._shared and self.socket is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close connections of strangers, and beyond a number that no honest peers need.

        pynetdicom counts every connection as an association until it is one.
        """
        del request
        if not self.reception.door.knows(str(client_address[0])):
            log.warning("connection of %s closed: no peer has this address", client_address[0])
            return False
        few = len(self.active_associations) < self._most
        if not few:
            log.warning("connection of %s closed: %d are open", client_address[0], self._most)
        return few


def _start(settings: Settings, reception: Reception, reports: Reports) -> _Server:
    # Its standard handlers format every PDU and message for a log nobody reads.
    _config.LOG_HANDLER_LEVEL = "none"
    entity = AE(ae_title=settings.ae_title)
    entity.maximum_associations = settings.max_associations
    entity.maximum_pdu_size = MAX_PDU
    entity.acse_timeout = ACSE_TIMEOUT
    entity.network_timeout = settings.idle_seconds
    entity.dimse_timeout = settings.idle_seconds
    syntaxes: list[str | UID] = list(transfer_syntaxes())
    for sop_class in SOP_CLASSES:
        entity.add_supported_context(sop_class, syntaxes)
    entity.add_supported_context(Verification)
    reception.documents.offer(entity)
    reports.offer(entity)
    try:
        made = entity.make_server(
            (settings.dicom_host, settings.dicom_port),
            evt_handlers=[*reception.handlers(), *reports.handlers()],
            server_class=_Server,
            request_handler=_Handler,
            reception=reception,
            settings=settings,
        )
    except OSError as error:
        where = f"{settings.dicom_host} port {settings.dicom_port}"
        if error.errno == errno.EADDRINUSE:
            msg = f"{where} is taken; stop what listens there or set HIPSCORE_DICOM_PORT"
        else:
            msg = f"cannot listen on {where}: {error.strerror or error}"
        raise ListenerError(msg) from error
    server = cast("_Server", made)
    entity._servers.append(server)  # noqa: SLF001 - shutdown() takes it out of there
    threading.Thread(
        target=server.serve_forever, args=(POLL_SECONDS,), name="listener", daemon=True
    ).start()
    return server


def _end_the_overdue(server: _Server, reception: Reception, longest: float) -> None:
    """Close connections that live too long: one that drips never seems idle."""
    for association in server.active_associations:
        allowed = longest if association.is_established else 2 * ACSE_TIMEOUT
        age = reception.age(association)
        if age > allowed:
            log.warning(
                "connection of %s ended after %.0f s (%s)",
                association.requestor.address,
                age,
                "see HIPSCORE_ASSOCIATION_SECONDS"
                if association.is_established
                else "it never became an association",
            )
            connection = association.dul.socket
            if connection is not None and connection.socket is not None:
                with contextlib.suppress(OSError):  # it ended by itself meanwhile
                    connection.socket.shutdown(socket.SHUT_RDWR)


def _stop(server: _Server) -> None:
    """Accept nothing new, wait for open associations, then abort what is left."""
    server.shutdown()
    deadline = time.monotonic() + DRAIN_SECONDS
    while _busy(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    for association in server.active_associations:
        if association.is_established:
            log.warning("aborting an association that did not finish in %g s", DRAIN_SECONDS)
        association.abort()


def _busy(server: _Server) -> bool:
    """Whether any association is open, or was released and is closing its series.

    A connection that has not asked for an association is not worth waiting for.
    """
    return any(each.requestor.primitive is not None for each in server.active_associations)
