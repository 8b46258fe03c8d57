"""What Schemathesis has to be told: how a STOW-RS body is put together (PS3.18 8.7.2)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import schemathesis

BOUNDARY = "part-of-a-test"
#: names the file of an image that is really one
IMAGE = "SCHEMATHESIS_IMAGE"


@schemathesis.serializer("multipart/related")
def related(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """One part that claims to be a DICOM file; every other time it is one."""
    content = value if isinstance(value, bytes) else getattr(value, "data", str(value).encode())
    if len(content) % 2 == 0:
        content = Path(os.environ[IMAGE]).read_bytes()
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return head + content + f"\r\n--{BOUNDARY}--\r\n".encode()


@schemathesis.hook
def before_call(
    _: schemathesis.HookContext, case: schemathesis.Case[Any], __: dict[str, Any]
) -> None:
    """The type of the body names the boundary, or else it is refused before it is read."""
    if case.media_type == "multipart/related" and case.headers is not None:
        case.headers["Content-Type"] = (
            f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        )
