"""The objects of a multipart/related body (RFC 2387), one after the other as the bytes come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from hipscore.keeping.part10 import LONGEST_META

#: RFC 2046 5.1.1
_LONGEST_BOUNDARY = 70


class MalformedBody(Exception):
    """The body is not what its Content-Type says; the text says where."""


@dataclass(slots=True)
class Part:
    """One part: its media type, and its bytes, or only their beginning if it is ``too_large``."""

    media_type: str = ""
    data: bytearray = field(default_factory=bytearray)
    too_large: bool = False


def parse_content_type(value: str | None) -> tuple[str, dict[str, str]]:
    """Media type in lower case, and parameters (RFC 9110 8.3.1)."""
    kind, options = parse_options_header(value)
    decoded = {name.decode("latin-1"): text.decode("latin-1") for name, text in options.items()}
    return kind.decode("latin-1").lower(), decoded


async def parts(
    chunks: AsyncIterator[bytes], *, boundary: str, largest: int
) -> AsyncIterator[Part]:
    """Yield the parts of a body; one of them at a time is in memory.

    Parameters
    ----------
    chunks
        The body as it arrives.
    boundary
        That of the Content-Type.
    largest
        Bytes of a part beyond this are read and dropped.

    Raises
    ------
    MalformedBody
        If the body is no multipart body with this boundary, or ends before its end.
    """
    if not 0 < len(boundary) <= _LONGEST_BOUNDARY:
        msg = f"the boundary has {len(boundary)} characters; 1 to {_LONGEST_BOUNDARY} are possible"
        raise MalformedBody(msg)
    reader = _Reader(boundary, largest)
    async for chunk in chunks:
        for part in reader.feed(chunk):
            yield part
    if not reader.ended:
        msg = "the body ends before its last boundary"
        raise MalformedBody(msg)


class _Reader:
    """Collects the parts as the parser meets them."""

    def __init__(self, boundary: str, largest: int) -> None:
        self.ended = False
        self._largest = largest
        self._part = Part()
        self._name, self._value = bytearray(), bytearray()
        self._done: list[Part] = []
        self._parser = MultipartParser(
            boundary.encode("latin-1"),
            {
                "on_part_begin": self._on_part_begin,
                "on_header_begin": self._on_header_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def feed(self, chunk: bytes) -> list[Part]:
        """Take what came; the parts that ended in it."""
        try:
            if chunk and not self.ended:  # what follows the last boundary means nothing
                self._parser.write(chunk)
        except MultipartParseError as error:
            msg = "the body is not multipart with the boundary of its Content-Type"
            raise MalformedBody(msg) from error
        done, self._done = self._done, []
        return done

    def _on_part_begin(self) -> None:
        self._part = Part()

    def _on_header_begin(self) -> None:
        self._name, self._value = bytearray(), bytearray()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._name.lower() == b"content-type":
            self._part.media_type, _ = parse_content_type(self._value.decode("latin-1"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.too_large:
            return
        part.data += memoryview(data)[start:end]
        if len(part.data) > self._largest:
            part.too_large = True
            del part.data[LONGEST_META:]

    def _on_part_end(self) -> None:
        self._done.append(self._part)
        self._part = Part()

    def _on_end(self) -> None:
        self.ended = True
