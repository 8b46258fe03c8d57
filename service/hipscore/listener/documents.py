"""Reports of hipscore that a PACS brings: what a C-MOVE of ours asked for, or a route sends.

They open no series and are not kept as files; what they say of an earlier study is.
"""

from __future__ import annotations

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from sqlalchemy.orm import Session, sessionmaker

from hipscore.header import Unreadable
from hipscore.keeping.reports import NotOurs, keep_report
from hipscore.keeping.rules import load_rules, peers
from hipscore.listener.command import StoreRequest
from hipscore.listener.door import Door
from hipscore.listener.statuses import CANNOT_UNDERSTAND, NOT_AUTHORISED, NOT_OURS, SUCCESS
from hipscore.reporting.earlier import SOP_CLASSES
from hipscore.settings import Settings

#: loopback, of either kind
_THIS_MACHINE = ("127.0.0.0/8", "::1")


class Documents:
    """Takes Comprehensive SR and Comprehensive 3D SR. Thread safe."""

    def __init__(self, settings: Settings, sessions: sessionmaker[Session], door: Door) -> None:
        self._door = door
        known = peers(settings, load_rules(settings))
        self._peers = [*known, *filter(None, [settings.query_peer])]
        self._sessions = sessions

    @staticmethod
    def offer(entity: AE) -> None:
        """Accept the SOP classes."""
        syntaxes: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        for sop_class in sorted(SOP_CLASSES):
            entity.add_supported_context(sop_class, syntaxes)

    def take(
        self, association: Association, request: StoreRequest, data: bytearray
    ) -> tuple[int, str]:
        """Keep what a report says; success only after the database has it.

        Returns
        -------
        tuple of int and str
            0x0000; 0xC212 for a document that is no report of ours; 0xC210 for one that
            cannot be read; 0x0124 where the sender is, by title and address, neither a
            destination nor the query peer, nor on this machine. And unless it is success,
            what was wrong.

        Raises
        ------
        hipscore.domain.Transient
            If the database cannot be used now.
        """
        sender = association.requestor
        if not self.trusts(sender.ae_title, sender.address or ""):
            return NOT_AUTHORISED, "reports are taken from destinations and query peer"
        announced = (request.sop_class_uid, request.sop_instance_uid)
        try:
            keep_report(data, announced, sessions=self._sessions)
        except Unreadable as error:
            return CANNOT_UNDERSTAND, str(error)
        except NotOurs as error:
            return NOT_OURS, str(error)
        return SUCCESS, ""

    def trusts(self, ae_title: str, address: str) -> bool:
        """Whether reports are taken from this sender, by title and address.

        A title alone is what anybody may call himself, and a report that is taken stands
        as an earlier result of a patient.
        """
        return any(self._door.is_at(host, address) for host in _THIS_MACHINE) or any(
            peer.ae_title == ae_title and self._door.is_at(peer.host, address)
            for peer in self._peers
        )
