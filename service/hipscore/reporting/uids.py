"""DICOM UIDs that are a function of what they name."""

from __future__ import annotations

import hashlib

_VERSION = 8 << 76  # RFC 9562 5.8: a UUID made by a rule of one's own
_VARIANT = 2 << 62


def derive(*parts: str) -> str:
    """UID under the UUID root ``2.25`` (PS3.5 B.2), a digest of the parts.

    The same parts give the same UID on every machine and in every release; parts are
    length-prefixed, so ``("ab", "c")`` and ``("a", "bc")`` differ.

    Raises
    ------
    ValueError
        If no part, or an empty part, is given.
    """
    if not parts or not all(parts):
        msg = f"a UID needs non-empty parts to be derived from, got {parts!r}"
        raise ValueError(msg)
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    number = int.from_bytes(digest.digest()[:16], "big")
    number = number & ~(0xF << 76) & ~(0x3 << 62) | _VERSION | _VARIANT
    return f"2.25.{number}"


#: PS3.7 D.3.3.2: identifies this implementation in file meta information
IMPLEMENTATION_CLASS = derive("hipscore", "implementation")
