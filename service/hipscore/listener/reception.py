"""What happens on each event of an association, from the connection to its release."""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
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

from hipscore.domain import ModelCard, Transient
from hipscore.header import is_uid
from hipscore.keeping import (
    Bringer,
    Closing,
    Keeper,
    Refusal,
    head,
    visit_broken,
    visit_ended,
)
from hipscore.keeping.rules import load_rules
from hipscore.keeping.visits import where
from hipscore.listener.command import StoreRequest
from hipscore.listener.documents import Documents
from hipscore.listener.door import CALLED_TITLE_UNKNOWN, Door
from hipscore.listener.express import ExpressSocket, Incoming
from hipscore.listener.statuses import (
    CANNOT_UNDERSTAND,
    MISPLACED,
    OUT_OF_RESOURCES,
    SUCCESS,
)
from hipscore.reporting.earlier import SOP_CLASSES as REPORTS
from hipscore.settings import Settings
from hipscore.spool import Spool

#: largest P-DATA-TF PDU we ask for, bytes; larger ones bring nothing
MAX_PDU = 256 * 1024
#: a sender that exceeds what it was asked for is borne with up to this PDU, bytes
LARGEST_PDU = 16 * MAX_PDU

_MB = 1024 * 1024
_STATUS = {
    Refusal.NO_ROOM: OUT_OF_RESOURCES,
    Refusal.UNREADABLE: CANNOT_UNDERSTAND,
    Refusal.MISPLACED: MISPLACED,
}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Visit:
    """One association: its id, what it is sending, and which images of which series it sent."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = field(default_factory=time.monotonic)
    receiving: int = 0
    images: dict[int, set[str]] = field(default_factory=dict)

    def count(self) -> int:
        return sum(map(len, self.images.values()))


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
        self._sessions = sessions
        self._broker = broker
        self.door = Door(settings)
        self.documents = Documents(settings, sessions, self.door)
        self._keeper = Keeper(settings, sessions=sessions, spool=spool)
        self._largest = self._keeper.largest
        self._closing = Closing(
            card=card, rules=load_rules(settings), sessions=sessions, spool=spool
        )
        self._visits: WeakKeyDictionary[Association, _Visit] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def handlers(self) -> list[evt.EventHandlerType]:
        """Return the event bindings for pynetdicom."""
        return [
            (evt.EVT_CONN_OPEN, self.on_connection),
            (evt.EVT_CONN_CLOSE, _let_go),
            (evt.EVT_REQUESTED, self.on_request),
            (evt.EVT_PDU_RECV, self.on_pdu),
            (evt.EVT_C_STORE, self.on_store),
            (evt.EVT_RELEASED, self.on_release),
            (evt.EVT_ABORTED, self.on_abort),
        ]

    def socket(self, association: Association, client: socket.socket) -> ExpressSocket:
        """Make the connection of a new association: C-STORE requests come to us directly."""
        return ExpressSocket(
            association,
            client,
            head=_head,
            store=self.on_express,
            too_large=self._cut_off,
            largest=self._largest,
            largest_pdu=LARGEST_PDU,
        )

    def age(self, association: Association) -> float:
        """Seconds since the connection was made."""
        return time.monotonic() - self._visit(association).began

    def on_connection(self, event: Event) -> None:
        """Remember when it began."""
        self._visit(event.assoc)

    def on_request(self, event: Event) -> None:
        """Turn away who is not among our peers (PS3.8 9.3.4)."""
        request = event.assoc.requestor.primitive
        if request is None:
            return
        calling, called = request.calling_ae_title.strip(), request.called_ae_title.strip()
        address = event.assoc.requestor.address or ""
        answer = self.door.rejection(calling=calling, called=called, address=address)
        if answer is None:
            return
        if answer == CALLED_TITLE_UNKNOWN:
            advice = f"it called {called!r}; see HIPSCORE_CALLED_AE_TITLES"
        else:
            advice = f"to let it in, add {calling}@{address} to HIPSCORE_SENDERS"
        log.warning("association of %s@%s rejected: %s", calling, address, advice)
        event.assoc.acse.send_reject(*answer)
        event.assoc.kill()  # waits until it is sent

    def on_pdu(self, event: Event) -> None:
        """Cut an association off whose message grows beyond the largest object we take."""
        visit = self._visit(event.assoc)
        visit.receiving += len(event.pdu) if isinstance(event.pdu, P_DATA_TF) else 0
        if visit.receiving > self._largest + MAX_PDU:
            self._cut_off(event.assoc)

    def on_store(self, event: Event) -> Dataset:
        """Serve a request that came through pynetdicom."""
        self._visit(event.assoc).receiving = 0
        command = cast("C_STORE", event.request)
        request = StoreRequest(
            message_id=command.MessageID or 0,
            sop_class_uid=str(command.AffectedSOPClassUID),
            sop_instance_uid=str(command.AffectedSOPInstanceUID),
        )
        answer = Dataset()
        if not is_uid(request.sop_instance_uid):
            answer.Status, comment = CANNOT_UNDERSTAND, "Affected SOP Instance UID is not a UID"
        else:
            data = bytearray(_part10_head(request, str(event.context.transfer_syntax)))
            data += event.encoded_dataset(include_meta=False)
            answer.Status, comment = self._answer(event.assoc, request, data)
        if comment:
            answer.ErrorComment = comment[:64]  # PS3.7 table C.5-1: VR LO
        return answer

    def on_express(self, incoming: Incoming) -> tuple[int, str]:
        """Serve a request that came past pynetdicom's queues."""
        return self._answer(incoming.association, incoming.request, incoming.data)

    def _answer(
        self, association: Association, request: StoreRequest, data: bytearray
    ) -> tuple[int, str]:
        """Keep one object; success only after spool and database have it (PS3.4 B.2.3)."""
        try:
            status, comment = self._keep(association, request, data)
        except (SQLAlchemyError, Transient, OSError) as error:
            status, comment = OUT_OF_RESOURCES, f"cannot be stored now: {type(error).__name__}"
        except Exception as error:  # noqa: BLE001 - a defect must not look like success
            log.error("C-STORE from %s failed: %s", _caller(association), where(error))  # noqa: TRY400
            status, comment = OUT_OF_RESOURCES, "internal error"
        if status != SUCCESS:
            log.warning(
                "C-STORE from %s answered 0x%04X: %s (SOP instance %s)",
                _caller(association),
                status,
                comment,
                request.sop_instance_uid,
            )
        return status, comment

    def on_release(self, event: Event) -> None:
        """The sender is done: close what is provably complete."""
        visit = self._forget(event.assoc)
        if visit is None or not visit.images:
            return
        log.info("%s released the association after %d images", _caller(event.assoc), visit.count())
        visit_ended(
            visit.images, closing=self._closing, sessions=self._sessions, broker=self._broker
        )

    def on_abort(self, event: Event) -> None:
        """Nothing is proven by a broken association; the quiet period decides."""
        visit = self._forget(event.assoc)
        if visit is not None and visit.images:
            log.warning(
                "association of %s ended without release after %d images",
                _caller(event.assoc),
                visit.count(),
            )
            visit_broken(visit.images, sessions=self._sessions)

    def _keep(
        self, association: Association, request: StoreRequest, data: bytearray
    ) -> tuple[int, str]:
        """Return the DIMSE status and, unless it is success, what was wrong."""
        if request.sop_class_uid in REPORTS:
            return self.documents.take(association, request, data)
        visit = self._visit(association)
        bringer = Bringer(
            calling_aet=association.requestor.ae_title,
            called_aet=_called(association),
            peer=association.requestor.address or "",
            visit=visit.id,
        )
        announced = (request.sop_class_uid, request.sop_instance_uid)
        kept = self._keeper.keep(data, bringer, announced=announced)
        if kept.refusal is not None or kept.series_id is None:
            return _STATUS[kept.refusal or Refusal.NO_ROOM], kept.text
        if kept.conflict:
            log.warning(
                "SOP instance %s came again from %s with other content; the first is kept",
                request.sop_instance_uid,
                _caller(association),
            )
        visit.images.setdefault(kept.series_id, set()).add(request.sop_instance_uid)
        return SUCCESS, ""

    def _cut_off(self, association: Association) -> None:
        log.error(
            "%s sends an object of more than %d MB; association aborted. "
            "Raise HIPSCORE_MAX_OBJECT_MB if such objects are wanted",
            _caller(association),
            self._largest // _MB,
        )
        association.abort(block=False)

    def _visit(self, association: Association) -> _Visit:
        with self._lock:
            return self._visits.setdefault(association, _Visit())

    def _forget(self, association: Association) -> _Visit | None:
        with self._lock:
            return self._visits.pop(association, None)


def _head(association: Association, context_id: int, request: StoreRequest) -> bytes | None:
    """The beginning of the file; None leaves the request to pynetdicom, which knows better."""
    for context in association.accepted_contexts:
        if context.context_id == context_id:
            ours = context.abstract_syntax == request.sop_class_uid
            if ours and is_uid(request.sop_instance_uid):
                return _part10_head(request, str(context.transfer_syntax[0]))
    return None


def _part10_head(request: StoreRequest, transfer_syntax_uid: str) -> bytes:
    return head(
        sop_class_uid=request.sop_class_uid,
        sop_instance_uid=request.sop_instance_uid,
        transfer_syntax_uid=transfer_syntax_uid,
    )


def _let_go(event: Event) -> None:
    """End the wait for a request on a connection that is closed.

    pynetdicom would wait for the ACSE timeout and count the connection as an association
    until then: a few port probes of a monitoring system would use up all of them.
    """
    if event.assoc.requestor.primitive is None:
        # What receive_pdu() returns on a timeout, which is what its caller acts on.
        event.assoc.dul.to_user_queue.put(cast("A_ABORT", None))


def _called(association: Association) -> str:
    """The title it asked for, which is ours or one of HIPSCORE_CALLED_AE_TITLES."""
    request = association.requestor.primitive
    called = association.acceptor.ae_title if request is None else request.called_ae_title
    return called.strip()


def _caller(association: Association) -> str:
    return f"{association.requestor.ae_title}@{association.requestor.address}"
