"""Keeping what arrives, whichever way it came (C-STORE, STOW-RS), and closing its series.

The promise is the same for all ways: whoever is told that an object is kept can forget it.
"""

from __future__ import annotations

from hipscore.keeping.closing import Closing
from hipscore.keeping.keeper import Bringer, Keeper, Kept, Refusal
from hipscore.keeping.part10 import head

__all__ = ["Bringer", "Closing", "Keeper", "Kept", "Refusal", "head"]
