"""What an archive says of itself."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

#: of the layout in :mod:`hipscore.archive`
FORMAT = 1

MANIFEST = "manifest.json"
DATABASE = "database"
SPOOL = "spool/"
#: also in it, and not needed to restore
EXTRAS = ("settings.json", "rules.toml")

Name = Annotated[
    str,
    StringConstraints(
        pattern=r"^(database|settings\.json|rules\.toml|spool/[0-9a-f]{2}/[0-9a-f]{62})$"
    ),
]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ArchiveError(Exception):
    """An archive cannot be written or read; one line that says why, and what to do."""


class Member(BaseModel):
    """One file of the archive: bytes and SHA-256 (hex)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)
    sha256: Digest


class Manifest(BaseModel):
    """The first member of an archive: what else is in it.

    Attributes
    ----------
    format
        :data:`FORMAT`.
    hipscore
        Version of the program that wrote it.
    made_at
        When, aware, UTC.
    database
        ``sqlite`` or ``postgresql``.
    revision
        Of the schema.
    rows
        How many there are, by table.
    members
        Every other file of the archive.
    lost
        Keys of files that rows refer to and that were missing or damaged already.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    hipscore: str
    made_at: datetime
    database: str
    revision: str
    rows: dict[str, int]
    members: dict[Name, Member]
    lost: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_are_digests(self) -> Self:
        """A file of the spool lies under its own digest."""
        for name, member in self.members.items():
            if name.startswith(SPOOL) and name != spool_name(member.sha256):
                msg = f"{name} has another digest"
                raise ValueError(msg)
        if DATABASE not in self.members:
            msg = "there is no database"
            raise ValueError(msg)
        return self

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return sum(each.size for each in self.members.values())

    @property
    def files(self) -> int:
        """How many images and results are in it."""
        return sum(name.startswith(SPOOL) for name in self.members)

    @property
    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.files} files, {self.size / 1e6:.1f} MB, {sum(self.rows.values())} rows; "
            f"{self.database}, schema {self.revision}, hipscore {self.hipscore}, "
            f"{self.made_at:%Y-%m-%d %H:%M} UTC"
        )


def spool_name(sha256: str) -> str:
    """Name of the member that holds the file with this digest (hex)."""
    return f"{SPOOL}{sha256[:2]}/{sha256[2:]}"
