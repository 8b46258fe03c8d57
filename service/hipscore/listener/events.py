"""Reports on storage commitments that a PACS brings over an association of its own.

There it is the Service Class Provider although it opened the association, which it says by
role selection (PS3.7 D.3.3.4); one that says nothing is understood too.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]
from sqlalchemy.orm import Session, sessionmaker

from hipscore import pacs
from hipscore.addresses import Peer
from hipscore.listener.door import Door
from hipscore.settings import Settings
from hipscore.store import commitment
from hipscore.store import engine as database


class Reports:
    """Takes N-EVENT-REPORT (PS3.4 J.3.3). Thread safe; no handler raises."""

    def __init__(self, settings: Settings, sessions: sessionmaker[Session], door: Door) -> None:
        self._door = door
        self._max_attempts = settings.max_attempts
        self._sessions = sessions

    def offer(self, entity: AE) -> None:
        """Accept the SOP class from a peer that is its provider."""
        syntaxes: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        entity.add_supported_context(
            StorageCommitmentPushModel, syntaxes, scu_role=False, scp_role=True
        )

    def handlers(self) -> list[evt.EventHandlerType]:
        """Return the event bindings for pynetdicom."""
        return [(evt.EVT_N_EVENT_REPORT, self.on_report)]

    def on_report(self, event: Event) -> tuple[int, None]:
        """Record the report, then answer; on anything but success the PACS sends it again."""
        reporter = event.assoc.requestor
        by = partial(self._is, reporter.ae_title, reporter.address or "")
        return pacs.take_report(event, partial(self._record, by=by)), None

    def _is(self, ae_title: str, address: str, destination: str) -> bool:
        """Whether this peer may speak for the destination: by its title, or by its address.

        A PACS of several nodes reports from another address than it receives at. Both have
        passed the door.
        """
        peer = Peer.parse(destination)
        return peer.ae_title == ae_title or self._door.is_at(peer.host, address)

    def _record(self, report: pacs.Report, *, by: Callable[[str], bool]) -> bool:
        with database.transaction(self._sessions) as session:
            return commitment.report(
                report.transaction_uid,
                succeeded=report.succeeded,
                failed=report.failed,
                by=by,
                max_attempts=self._max_attempts,
                now=datetime.now(UTC),
                session=session,
            )
