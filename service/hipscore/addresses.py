"""Where results go and who may send: addresses as an operator writes them.

A destination is a DICOM peer (``AET@HOST:PORT``), a DICOMweb service (``https://…``), or an
HL7 receiver (``mllp://HOST:PORT``). Its text is its identity in the database and the ledger
and holds no secret.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TypeAlias
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

_AE_TITLE = re.compile(r"[ -\[\]-~]{1,16}")  # PS3.5 table 6.2-1, VR AE: no backslash, no controls
_PEER = re.compile(
    r"(?P<aet>[^@]{1,16})@(?P<host>[^@:\[\]\s/]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})"
)
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
#: deliveries.destination
_LONGEST = 320


class Peer(BaseModel):
    """A DICOM application entity to send to, written ``AET@HOST:PORT``."""

    model_config = ConfigDict(frozen=True)

    ae_title: str
    host: str
    port: int = Field(ge=1, le=65535)

    @field_validator("ae_title")
    @classmethod
    def _check_title(cls, value: str) -> str:
        return ae_title(value)

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Read ``AET@HOST:PORT`` (IPv6 in brackets).

        Raises
        ------
        ValueError
            If the text has another form, with the text in the message.
        """
        found = _PEER.fullmatch(text.strip())
        if found is None or not 0 < int(found["port"]) < 65536:
            msg = (
                f"{text!r} is not a DICOM peer; write AET@HOST:PORT, for example PACS@10.0.0.5:104"
            )
            raise ValueError(msg)
        title = ae_title(found["aet"])
        return cls(ae_title=title, host=found["host"].strip("[]"), port=int(found["port"]))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.ae_title}@{host}:{self.port}"


class DicomWeb(BaseModel):
    """A DICOMweb service that takes STOW-RS, written as its base URL ``http(s)://HOST/PATH``.

    Credentials do not belong into the URL: see the ``[[destination]]`` of the rules file.
    """

    model_config = ConfigDict(frozen=True)

    url: str

    @classmethod
    def parse(cls, text: str) -> DicomWeb:
        """Read a base URL. Raises ValueError if it is none, or holds credentials or a query."""
        url = text.strip().rstrip("/")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
            msg = f"{text!r} is not a DICOMweb service; write https://HOST/PATH"
            raise ValueError(msg)
        if parts.username is not None or parts.query or parts.fragment:
            msg = (
                "the URL of a DICOMweb service has no user, password, query or fragment; "
                "credentials stand in the rules file (authorization_file)"
            )
            raise ValueError(msg)
        if len(url) > _LONGEST:
            msg = f"the URL of a DICOMweb service has at most {_LONGEST} characters"
            raise ValueError(msg)
        return cls(url=url)

    def __str__(self) -> str:
        return self.url


class Mllp(BaseModel):
    """An HL7 v2 receiver (Minimal Lower Layer Protocol), written ``mllp://HOST:PORT``."""

    model_config = ConfigDict(frozen=True)

    host: str
    port: int = Field(ge=1, le=65535)

    @classmethod
    def parse(cls, text: str) -> Mllp:
        """Read ``mllp://HOST:PORT``. Raises ValueError if the text has another form."""
        try:
            parts = urlsplit(text.strip())
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        more = parts.path.strip("/") or parts.query or parts.username
        if parts.scheme != "mllp" or not host or not port or more:
            msg = f"{text!r} is not an HL7 receiver; write mllp://HOST:PORT"
            raise ValueError(msg)
        return cls(host=host, port=port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mllp://{host}:{self.port}"


Destination: TypeAlias = Peer | DicomWeb | Mllp


def destination(text: str) -> Destination:
    """Read the address of a destination of any kind; ``str()`` gives it back.

    Raises
    ------
    ValueError
        If the text has none of the forms, with the text in the message.
    """
    scheme, found, _ = text.strip().partition("://")
    if not found:
        return Peer.parse(text)
    if scheme.lower() == "mllp":
        return Mllp.parse(text)
    if scheme.lower() in {"http", "https"}:
        return DicomWeb.parse(text)
    msg = f"{text!r} is no destination; write AET@HOST:PORT, https://HOST/PATH or mllp://HOST:PORT"
    raise ValueError(msg)


class Sender(BaseModel):
    """Who may open an association, written ``CALLING_AET@HOST``.

    The title may be ``*``; the host a name, an address, or a network in CIDR notation.
    """

    model_config = ConfigDict(frozen=True)

    ae_title: str
    host: str

    @classmethod
    def parse(cls, text: str) -> Sender:
        """Read ``AET@HOST``.

        Raises
        ------
        ValueError
            If the text has another form, with the text in the message.
        """
        title, found, host = text.strip().partition("@")
        host = host.strip("[]").lower()
        if not found or not host or not (_is_network(host) or is_host_name(host)):
            msg = (
                f"{text!r} is not a sender; write AET@HOST, for example SCANNER@10.0.0.7, "
                "*@10.0.0.0/24 or PACS@pacs.example.org"
            )
            raise ValueError(msg)
        return cls(ae_title="*" if title == "*" else ae_title(title), host=host)

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}"


def is_host_name(text: str) -> bool:
    """Whether this can be the name of a host, in lower case."""
    return _HOST_NAME.fullmatch(text) is not None


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def ae_title(text: str) -> str:
    """Check and trim an AE title (PS3.5 6.2). Raises ValueError naming what was wrong."""
    title = text.strip(" ")
    if not title or _AE_TITLE.fullmatch(title) is None:
        msg = f"{text!r} is not an AE title; 1 to 16 printable ASCII characters without backslash"
        raise ValueError(msg)
    return title
