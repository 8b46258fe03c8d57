"""Talking to DICOM peers: sending, asking for storage commitment, counting by query.

Every function makes one association, asks, and comes back with an
:class:`hipscore.domain.Outcome` or a count; no peer makes it raise.
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
from hipscore.pacs.query import count_images
from hipscore.pacs.storage import echo, send, send_files, send_one_of

__all__ = [
    "DEFAULT_TIMEOUTS",
    "Failure",
    "Reference",
    "Report",
    "Timeouts",
    "count_images",
    "echo",
    "request_commitment",
    "send",
    "send_files",
    "send_one_of",
    "take_report",
]
