"""A PACS that fails on demand, in front of a real one.

As long as it is well it passes every object on to Orthanc, byte for byte, and answers
storage commitment by asking Orthanc. Whatever its mood, it remembers the SHA-256 of every
data set it accepted, so that other bytes under a known SOP Instance UID are noticed.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import httpx
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    SegmentationStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from tests.processes import LOOPBACK, free_port
from tests.servers import Orthanc

AE_TITLE = "FRONT"
#: small PDUs, so that an object takes many and can be cut off in its middle
_PDU_BYTES = 16 * 1024
_HANG_SECONDS = 300.0
#: how long a slow PACS takes: longer than the lease of a delivery
SLOW_SECONDS = 16.0
_NO_SUCH_OBJECT = 0x0112  # PS3.3 C.14.1.1


class Mood(StrEnum):
    """How the PACS answers."""

    WELL = "well"
    DOWN = "down"
    REJECT = "rejects associations"
    FULL = "answers 0xA700"
    REFUSE = "answers 0xC000"
    CUT = "drops the connection in mid-object"
    SWALLOW = "keeps the object and drops the association"
    EMPTY = "answers without a status"
    HANG = "never answers"
    SLOW = "answers late"
    COMMIT_NEVER = "never reports commitment"
    COMMIT_NOT = "declines commitment of one object"
    COMMIT_REFUSE = "will never commit to one object"
    COMMIT_ERROR = "answers commitment with 0x0110"


class Front:
    """The SCP; ``mood`` may be changed at any time."""

    def __init__(self, orthanc: Orthanc, *, report_to: int) -> None:
        self.port = free_port()
        #: how often each mood has struck
        self.struck: Counter[Mood] = Counter()
        #: SHA-256 of the data sets accepted under each SOP Instance UID
        self.accepted: dict[str, set[str]] = defaultdict(set)
        self._orthanc = orthanc
        self._report_to = report_to
        self._mood = Mood.WELL
        self._changed = threading.Condition()
        self._entity = AE(ae_title=AE_TITLE)
        self._entity.maximum_pdu_size = _PDU_BYTES
        self._entity.maximum_associations = 50
        for sop_class in (SegmentationStorage, Comprehensive3DSRStorage, ComprehensiveSRStorage):
            self._entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
        self._entity.add_supported_context(StorageCommitmentPushModel)
        self._entity.add_supported_context(Verification)
        self._server = self._listen()

    @property
    def peer(self) -> str:
        """``AET@HOST:PORT``."""
        return f"{AE_TITLE}@{LOOPBACK}:{self.port}"

    @property
    def mood(self) -> Mood:
        """How it answers now."""
        return self._mood

    @mood.setter
    def mood(self, mood: Mood) -> None:
        with self._changed:
            before, self._mood = self._mood, mood
            self._changed.notify_all()
        self._entity.require_calling_aet = ["NOBODY"] if mood is Mood.REJECT else []
        if before is Mood.DOWN and mood is not Mood.DOWN:
            self._server = self._listen()
        elif mood is Mood.DOWN and before is not Mood.DOWN:
            self._server.shutdown()
            self._server.server_close()

    def close(self) -> None:
        """Stop listening, answer nobody any more."""
        self.mood = Mood.DOWN

    def _listen(self) -> Any:
        return self._entity.start_server(
            (LOOPBACK, self.port),
            block=False,
            evt_handlers=[
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_N_ACTION, self._commit),
                (evt.EVT_PDU_RECV, self._pdu),
                (evt.EVT_REJECTED, self._rejected),
            ],
        )

    def _rejected(self, event: Event) -> None:
        del event
        self.struck[Mood.REJECT] += 1

    def _pdu(self, event: Event) -> None:
        """Cut the connection when the first fragment of a data set comes in."""
        if self._mood is not Mood.CUT:
            return
        items = getattr(event.pdu, "presentation_data_value_items", None) or ()
        # bit 0 of the message control header: 1 is command, 0 is data (PS3.8 E.2)
        if any(item.presentation_data_value[0] & 1 == 0 for item in items):
            self.struck[Mood.CUT] += 1
            connection = event.assoc.dul.socket
            if connection is not None:
                connection.close()

    def _store(self, event: Event) -> int:
        mood = self._mood
        if mood not in {Mood.WELL, *_COMMITMENTS}:
            self.struck[mood] += 1
        if mood is Mood.FULL:
            return 0xA700
        if mood is Mood.REFUSE:
            return 0xC000
        if mood in {Mood.HANG, Mood.SLOW}:
            seconds = _HANG_SECONDS if mood is Mood.HANG else SLOW_SECONDS
            with self._changed:
                self._changed.wait_for(lambda: self._mood is not mood, timeout=seconds)
            if mood is Mood.HANG:
                event.assoc.abort(block=False)
                return 0xA700
        if mood is Mood.CUT:
            return 0xA700  # the connection is gone; this answers nobody
        if not self._keep(event):
            return 0xA700
        if mood is Mood.SWALLOW:
            event.assoc.abort(block=False)
        if mood is Mood.EMPTY:
            _answer_without_status(event)
        return 0x0000

    def _keep(self, event: Event) -> bool:
        data = event.encoded_dataset(include_meta=False)
        uid = str(event.request.AffectedSOPInstanceUID)  # type: ignore[union-attr]
        try:
            self._orthanc.upload(event.encoded_dataset())
        except httpx.HTTPError:
            return False
        self.accepted[uid].add(hashlib.sha256(data).hexdigest())
        return True

    # --- storage commitment, PS3.4 annex J ------------------------------------------------

    def _commit(self, event: Event) -> tuple[int, Dataset | None]:
        mood = self._mood
        if mood in _COMMITMENTS:
            self.struck[mood] += 1
        if mood is Mood.COMMIT_ERROR:
            return 0x0110, None
        if mood is Mood.COMMIT_NEVER:
            return 0x0000, None
        asked = event.action_information
        thread = threading.Thread(
            target=self._report, args=(asked, _REASONS.get(mood)), daemon=True
        )
        thread.start()
        return 0x0000, None

    def _report(self, asked: Dataset, reason: int | None) -> None:
        report, held, failed = Dataset(), [], []
        report.TransactionUID = asked.TransactionUID
        for number, item in enumerate(asked.ReferencedSOPSequence):
            line = Dataset()
            line.ReferencedSOPClassUID = item.ReferencedSOPClassUID
            line.ReferencedSOPInstanceUID = item.ReferencedSOPInstanceUID
            uid = str(item.ReferencedSOPInstanceUID)
            if reason is not None and number == 0:
                line.FailureReason = reason
                failed.append(line)
            elif self._orthanc.find("Instance", SOPInstanceUID=uid):
                held.append(line)
            else:
                line.FailureReason = _NO_SUCH_OBJECT
                failed.append(line)
        if held:
            report.ReferencedSOPSequence = held
        if failed:
            report.FailedSOPSequence = failed
        self._tell(report, 2 if failed else 1)

    def _tell(self, report: Dataset, event_type: int) -> None:
        """On an association of its own, as a PACS does; if that fails, it stays untold."""
        entity = AE(ae_title=AE_TITLE)
        entity.add_requested_context(StorageCommitmentPushModel)
        association = entity.associate(
            LOOPBACK,
            self._report_to,
            ae_title="HIPSCORE",
            ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
        )
        if not association.is_established:
            return
        try:
            association.send_n_event_report(
                report,
                event_type,
                StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance,
            )
        except (RuntimeError, ValueError):
            association.abort()
        else:
            association.release()


#: Failure Reason (0008,1197), PS3.3 C.14.1.1: no such object instance, class not supported
_REASONS = {Mood.COMMIT_NOT: _NO_SUCH_OBJECT, Mood.COMMIT_REFUSE: 0x0122}
_COMMITMENTS = frozenset({Mood.COMMIT_NEVER, Mood.COMMIT_ERROR, *_REASONS})


def _answer_without_status(event: Event) -> None:
    """Take the Status (0000,0900) out of the answer that follows."""
    send: Callable[[Any, int], None] = event.assoc.dimse.send_msg

    def bare(primitive: Any, context_id: int) -> None:
        primitive._Status = None
        primitive._status = None
        send(primitive, context_id)

    event.assoc.dimse.send_msg = bare  # type: ignore[method-assign] # no library answers so
