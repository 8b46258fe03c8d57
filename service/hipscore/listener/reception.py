"""What happens on each event of an association, from the connection to its release."""

from __future__ import annotations

import logging
import socket
import threading
import traceback
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

from celery import Celery
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import A_ABORT
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from hipscore import lifecycle, queue
from hipscore.domain import ModelCard, ReceivedInstance, Transient
from hipscore.header import Unreadable, read_header
from hipscore.listener.part10 import part10
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import engine as database
from hipscore.store import intake, jobs
from hipscore.store.closing import settle

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700  # PS3.4 table B.2-1: Refused: Out of Resources
CANNOT_UNDERSTAND = 0xC210  # PS3.4 table B.2-1: Error: Cannot understand, 0xC000-0xCFFF
MISPLACED = 0xC211  # likewise: what it says of its study contradicts what is known

#: largest P-DATA-TF PDU we ask for, bytes; larger ones bring nothing
MAX_PDU = 256 * 1024
#: a sender that exceeds what it was asked for is borne with up to this PDU, bytes
LARGEST_PDU = 16 * MAX_PDU

_MB = 1024 * 1024

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Visit:
    """One association: its id, and the size of the message it is sending."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    images: int = 0
    receiving: int = 0


class Reception:
    """What happens on each event of an association. Thread safe; no handler raises."""

    def __init__(
        self,
        settings: Settings,
        *,
        card: ModelCard,
        sessions: sessionmaker[Session],
        spool: Spool,
        broker: Celery,
    ) -> None:
        self._card = card
        self._sessions = sessions
        self._spool = spool
        self._broker = broker
        self._reserve = settings.reserve_mb * _MB
        self._largest = settings.max_object_mb * _MB
        self._visits: WeakKeyDictionary[Association, _Visit] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def handlers(self) -> list[evt.EventHandlerType]:
        """Return the event bindings for pynetdicom."""
        return [
            (evt.EVT_CONN_OPEN, _prepare),
            (evt.EVT_CONN_CLOSE, _let_go),
            (evt.EVT_PDU_RECV, self.on_pdu),
            (evt.EVT_C_STORE, self.on_store),
            (evt.EVT_RELEASED, self.on_release),
            (evt.EVT_ABORTED, self.on_abort),
        ]

    def on_pdu(self, event: Event) -> None:
        """Cut an association off whose message grows beyond the largest object we take."""
        visit = self._visit(event.assoc)
        visit.receiving += len(event.pdu) if isinstance(event.pdu, P_DATA_TF) else 0
        if visit.receiving > self._largest + MAX_PDU:
            log.error(
                "%s sends an object of more than %d MB; association aborted. "
                "Raise HIPSCORE_MAX_OBJECT_MB if such objects are wanted",
                _caller(event),
                self._largest // _MB,
            )
            event.assoc.abort(block=False)

    def on_store(self, event: Event) -> Dataset:
        """Keep one image; success only after spool and database have it (PS3.4 B.2.3)."""
        visit = self._visit(event.assoc)
        visit.receiving = 0
        try:
            status, comment = self._keep(event, visit)
        except (SQLAlchemyError, Transient, OSError) as error:
            status, comment = OUT_OF_RESOURCES, f"cannot be stored now: {type(error).__name__}"
        except Exception as error:  # noqa: BLE001 - a defect must not look like success
            log.error("C-STORE from %s failed: %s", _caller(event), _where(error))  # noqa: TRY400
            status, comment = OUT_OF_RESOURCES, "internal error"
        answer = Dataset()
        answer.Status = status
        if status != SUCCESS:
            log.warning(
                "C-STORE from %s answered 0x%04X: %s (SOP instance %s)",
                _caller(event),
                status,
                comment,
                cast("C_STORE", event.request).AffectedSOPInstanceUID,
            )
            answer.ErrorComment = comment[:64]  # PS3.7 table C.5-1: VR LO
        return answer

    def on_release(self, event: Event) -> None:
        """The sender is done: close what is provably complete."""
        visit = self._forget(event.assoc)
        if visit is None or visit.images == 0:
            return
        log.info("%s released the association after %d images", _caller(event), visit.images)
        try:
            self._close_series(visit.id)
        except (SQLAlchemyError, Transient) as error:
            log.warning(
                "series of an association stay open until they are quiet: %s", _where(error)
            )
        except Exception as error:  # noqa: BLE001 - the reaper repeats this; the thread ends here
            log.error("closing the series failed: %s", _where(error))  # noqa: TRY400

    def on_abort(self, event: Event) -> None:
        """Nothing is proven by a broken association; the quiet period decides."""
        visit = self._forget(event.assoc)
        if visit is not None and visit.images:
            log.warning(
                "association of %s ended without release after %d images",
                _caller(event),
                visit.images,
            )

    def _keep(self, event: Event, visit: _Visit) -> tuple[int, str]:
        """Return the DIMSE status and, unless it is success, what was wrong."""
        data = part10(event)
        if len(data) > self._largest:
            return OUT_OF_RESOURCES, f"object larger than {self._largest // _MB} MB"
        try:
            instance = read_header(data)
        except Unreadable as error:
            return CANNOT_UNDERSTAND, str(error)
        if (different := _contradiction(instance, cast("C_STORE", event.request))) is not None:
            return CANNOT_UNDERSTAND, different
        if self._spool.free_bytes() < self._reserve + len(data):
            return OUT_OF_RESOURCES, f"less than {self._reserve // _MB} MB of disk left"
        key = self._spool.put(data).key
        with database.transaction(self._sessions) as session:
            recorded = intake.record(
                instance,
                spool_key=key,
                calling_aet=event.assoc.requestor.ae_title,
                called_aet=event.assoc.acceptor.ae_title,
                peer=event.assoc.requestor.address or "",
                association_id=visit.id,
                now=datetime.now(UTC),
                session=session,
            )
        if recorded.verdict is intake.Verdict.MISPLACED:
            return MISPLACED, "series is known in another study"
        visit.images += 1
        if recorded.verdict is intake.Verdict.CONFLICT:
            log.warning(
                "SOP instance %s came again from %s with other content; the first is kept",
                instance.sop_instance_uid,
                _caller(event),
            )
        return SUCCESS, ""

    def _close_series(self, association_id: str) -> None:
        with database.transaction(self._sessions) as session:
            touched = intake.of_association(association_id, session=session)
        for series_id in touched:
            with database.transaction(self._sessions) as session:
                job_id = self._close(series_id, association_id, session=session)
            if job_id is not None and queue.enqueue_analyse(self._broker, job_id):
                with database.transaction(self._sessions) as session:
                    jobs.enqueued([job_id], now=datetime.now(UTC), session=session)

    def _close(self, series_id: int, association_id: str, *, session: Session) -> int | None:
        arrived = intake.evidence(series_id, session=session)
        reason = lifecycle.completeness(
            arrived.instances, released=True, one_association=arrived.all_on(association_id)
        )
        if reason is None:
            return None
        job = settle(series_id, reason, card=self._card, now=datetime.now(UTC), session=session)
        return None if job is None else job.id

    def _visit(self, association: Association) -> _Visit:
        with self._lock:
            return self._visits.setdefault(association, _Visit())

    def _forget(self, association: Association) -> _Visit | None:
        with self._lock:
            return self._visits.pop(association, None)


def _contradiction(instance: ReceivedInstance, command: C_STORE) -> str | None:
    """What the data set says of itself and the command says otherwise."""
    if instance.sop_instance_uid != command.AffectedSOPInstanceUID:
        return "SOP Instance UID differs from the command's"
    if instance.sop_class_uid != command.AffectedSOPClassUID:
        return "SOP Class UID differs from the command's"
    return None


def _prepare(event: Event) -> None:
    """Make a new connection answer at once, and refuse PDUs that would fill the memory."""
    transport = event.assoc.dul.socket
    if transport is None or transport.socket is None:
        return
    # Nagle's algorithm would hold each answer back for up to 40 ms.
    transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    receive = transport.recv

    def bounded(nr_bytes: int) -> bytearray:
        # pynetdicom reads as much as the PDU's length field says, and that may say 4 GB.
        # It takes an OSError for a connection that broke.
        if nr_bytes > LARGEST_PDU:
            msg = f"PDU of {nr_bytes} bytes, {MAX_PDU} were negotiated"
            raise OSError(msg)
        return receive(nr_bytes)

    transport.recv = bounded  # type: ignore[method-assign] # has no setting for it


def _let_go(event: Event) -> None:
    """End the wait for a request on a connection that is closed.

    pynetdicom would wait for the ACSE timeout and count the connection as an association
    until then: a few port probes of a monitoring system would use up all of them.
    """
    if event.assoc.requestor.primitive is None:
        # What receive_pdu() returns on a timeout, which is what its caller acts on.
        event.assoc.dul.to_user_queue.put(cast("A_ABORT", None))


def _caller(event: Event) -> str:
    requestor = event.assoc.requestor
    return f"{requestor.ae_title}@{requestor.address}"


def _where(error: BaseException) -> str:
    """Name an error by its class and the line that raised it.

    Its text, and so logging.exception, is left out: it may quote an element of the data set.
    """
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {Path(frame[0].filename).name}:{frame[0].lineno}" if frame else ""
    return f"{type(error).__name__}{place}"
