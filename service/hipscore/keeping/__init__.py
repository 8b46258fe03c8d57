"""Keeping what arrives, whichever way it came (C-STORE, STOW-RS), and closing its series.

The promise is the same for all ways: whoever is told that an object is kept can forget it.
"""

from __future__ import annotations

from hipscore.keeping.closing import Closing
from hipscore.keeping.keeper import Bringer, Keeper, Kept, Refusal
from hipscore.keeping.offer import SOP_CLASSES, transfer_syntaxes
from hipscore.keeping.part10 import file_meta, head, tidied
from hipscore.keeping.visits import visit_broken, visit_ended

__all__ = [
    "SOP_CLASSES",
    "Bringer",
    "Closing",
    "Keeper",
    "Kept",
    "Refusal",
    "file_meta",
    "head",
    "tidied",
    "transfer_syntaxes",
    "visit_broken",
    "visit_ended",
]
