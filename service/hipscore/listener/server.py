"""The process ``hipscore listen``: what is offered, starting, and stopping in an orderly way."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable

from pydicom.pixels import get_decoder  # type: ignore[attr-defined]
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, _config
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
    Verification,
)
from pynetdicom.transport import ThreadedAssociationServer

from hipscore import inference, queue
from hipscore.domain import ModelCard
from hipscore.listener.reception import MAX_PDU, Reception
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import engine as database

SOP_CLASSES = (MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)

# In order of preference where a sender proposes several in one context.
_UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
_COMPRESSED = (
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    RLELossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    JPEG2000,
)

ACSE_TIMEOUT = 15.0
NETWORK_TIMEOUT = 60.0
#: seconds that open associations get to finish when the listener stops
DRAIN_SECONDS = 10.0

log = logging.getLogger(__name__)


class ListenerError(Exception):
    """The listener cannot start; the message says why and what to do."""


def transfer_syntaxes() -> list[UID]:
    """Return every transfer syntax we accept: uncompressed, and compressed with a decoder here.

    Deflated Explicit VR is left out: its header cannot be read without inflating it all.
    """
    return [*_UNCOMPRESSED, *(uid for uid in _COMPRESSED if get_decoder(uid).is_available)]


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
        If the address cannot be bound.
    hipscore.inference.BundleError
        If ``card`` is not given and the bundle is not usable.
    """
    engine = database.connect(settings.database)
    try:
        reception = Reception(
            settings,
            card=card or inference.open_bundle(settings.bundle_dir).card,
            sessions=database.sessions(engine),
            spool=Spool(settings.data_dir / "spool"),
            broker=queue.publisher(settings.broker),
        )
        server = _start(settings, reception)
        port = int(server.server_address[1])
        log.info("listening as %s on %s port %d", settings.ae_title, settings.dicom_host, port)
        try:
            if ready is not None:
                ready(port)
            stop.wait()
        finally:
            _stop(server)
            log.info("listener stopped")
    finally:
        engine.dispose()


def _start(settings: Settings, reception: Reception) -> ThreadedAssociationServer:
    # Its standard handlers format every PDU and message for a log nobody reads.
    _config.LOG_HANDLER_LEVEL = "none"
    entity = AE(ae_title=settings.ae_title)
    entity.maximum_associations = settings.max_associations
    entity.maximum_pdu_size = MAX_PDU
    entity.acse_timeout = ACSE_TIMEOUT
    entity.network_timeout = NETWORK_TIMEOUT
    entity.dimse_timeout = NETWORK_TIMEOUT
    syntaxes = transfer_syntaxes()
    for sop_class in SOP_CLASSES:
        entity.add_supported_context(sop_class, syntaxes)
    entity.add_supported_context(Verification)
    try:
        server = entity.start_server(
            (settings.dicom_host, settings.dicom_port),
            block=False,
            evt_handlers=reception.handlers(),
        )
    except OSError as error:
        where = f"{settings.dicom_host} port {settings.dicom_port}"
        if error.errno == errno.EADDRINUSE:
            msg = f"{where} is taken; stop what listens there or set HIPSCORE_DICOM_PORT"
        else:
            msg = f"cannot listen on {where}: {error.strerror or error}"
        raise ListenerError(msg) from error
    if server is None:
        msg = "the listener did not start"
        raise ListenerError(msg)
    return server


def _stop(server: ThreadedAssociationServer) -> None:
    """Accept nothing new, wait for open associations, then abort what is left."""
    server.shutdown()
    deadline = time.monotonic() + DRAIN_SECONDS
    while _busy(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    for association in server.active_associations:
        if association.is_established:
            log.warning("aborting an association that did not finish in %g s", DRAIN_SECONDS)
        association.abort()


def _busy(server: ThreadedAssociationServer) -> bool:
    """Whether any association is open, or was released and is closing its series.

    A connection that has not asked for an association is not worth waiting for.
    """
    return any(each.requestor.primitive is not None for each in server.active_associations)
