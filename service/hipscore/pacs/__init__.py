"""Talking to DICOM peers: sending, asking for storage commitment, for orders, for reports.

Every function makes one association, asks, and comes back with an
:class:`hipscore.domain.Outcome` or what it asked for; no peer makes it raise. A
:class:`Carrier` keeps its association for several objects.
"""

from __future__ import annotations

from hipscore.pacs.association import DEFAULT_TIMEOUTS, Timeouts
from hipscore.pacs.commitment import (
    Failure,
    Reference,
    Report,
    request_commitment,
    take_report,
)
from hipscore.pacs.earlier import Arrived, Brought, bring_reports
from hipscore.pacs.orders import order_from_pacs, order_from_worklist
from hipscore.pacs.query import count_images
from hipscore.pacs.storage import Carrier, echo, send, send_files, send_one_of

__all__ = [
    "DEFAULT_TIMEOUTS",
    "Arrived",
    "Brought",
    "Carrier",
    "Failure",
    "Reference",
    "Report",
    "Timeouts",
    "bring_reports",
    "count_images",
    "echo",
    "order_from_pacs",
    "order_from_worklist",
    "request_commitment",
    "send",
    "send_files",
    "send_one_of",
    "take_report",
]
