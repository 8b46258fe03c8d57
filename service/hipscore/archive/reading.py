"""Restore: every file is compared with its digest before anything refers to it."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from hipscore.archive import database
from hipscore.archive.manifest import (
    DATABASE,
    EXTRAS,
    FORMAT,
    MANIFEST,
    SPOOL,
    ArchiveError,
    Manifest,
    Member,
)
from hipscore.spool import Spool
from hipscore.store.engine import SchemaState, judged

_CHUNK = 1 << 20
#: a million images; more than that is no manifest of ours
_LARGEST_MANIFEST = 1 << 29

#: given the manifest, wraps its members to show how far the work is
Progress = Callable[[Iterable[str], Manifest], Iterable[str]]


def check(file: Path, *, progress: Progress = lambda names, _: names) -> Manifest:
    """Read an archive to its end and compare every file with its digest.

    Raises
    ------
    ArchiveError
        If it is damaged, cut short, or no archive of ours.
    """
    with _opened(file) as (manifest, members):
        for name, chunks in _each(file, members, manifest, progress):
            for _ in _checked(file, name, chunks, manifest.members[name]):
                pass
    return manifest


def restore(
    file: Path,
    *,
    url: str,
    spool: Spool,
    extras: Path,
    progress: Progress = lambda names, _: names,
) -> Manifest:
    """Make the database and the files of an archive, where there are none.

    The database comes last and whole: until then nothing refers to the files. If anything
    fails, the files that were put are deleted again; a process that is killed leaves some that
    nobody refers to, and that a purge deletes after a day.

    Parameters
    ----------
    url
        SQLAlchemy URL of a database without tables, of the kind that the archive has.
    spool
        Where the files go. Those of the same content that are there stay as they are.
    extras
        Folder for the settings and rules that were in force; they are not put into force.

    Raises
    ------
    ArchiveError
        If the database is not empty or of another kind, the archive is damaged, cut short, or
        made by a newer version.
    Transient
        If disk or database fail.
    """
    if not database.empty(url):
        msg = "the database is not empty: restore into a new one, or move the old one away"
        raise ArchiveError(msg)
    placed: list[str] = []
    try:
        with (
            _opened(file) as (manifest, members),
            tempfile.TemporaryDirectory(dir=spool.root.parent, prefix=".restore-") as private,
        ):
            _suits(manifest, url)
            for name, chunks in _each(file, members, manifest, progress):
                expected = manifest.members[name]
                content = _checked(file, name, chunks, expected)
                if name.startswith(SPOOL):
                    _place(content, expected.sha256, spool, placed)
                else:
                    with (Path(private) / name).open("wb") as kept:
                        kept.writelines(content)
            database.load(Path(private) / DATABASE, url)
            _keep_extras(Path(private), extras)
    except BaseException:
        for key in placed:
            with suppress(OSError):
                spool.path(key).unlink(missing_ok=True)
        raise
    return manifest


def _place(content: Iterator[bytes], sha256: str, spool: Spool, placed: list[str]) -> None:
    key = f"{sha256[:2]}/{sha256[2:]}"
    if not spool.path(key).exists():
        placed.append(key)
    spool.put(content)


def _suits(manifest: Manifest, url: str) -> None:
    here = database.kind(url)
    if manifest.database != here:
        msg = (
            f"the archive holds a {manifest.database} database, and HIPSCORE_DATABASE_URL names "
            f"{here}: set it to an empty {manifest.database} database"
        )
        raise ArchiveError(msg)
    if judged(manifest.revision).state is SchemaState.UNKNOWN:
        msg = (
            f"the archive was made by hipscore {manifest.hipscore} with schema "
            f"{manifest.revision}, which this version does not know: install that version"
        )
        raise ArchiveError(msg)


def _keep_extras(found: Path, folder: Path) -> None:
    for name in EXTRAS:
        if (found / name).exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / name).write_bytes((found / name).read_bytes())


_Members = Iterator[tuple[str, Iterator[bytes]]]


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Manifest, _Members]]:
    """The manifest, and the other members in their order. What is wrong with them is one line."""
    try:
        with tarfile.open(file, "r|*") as tar:
            members = _members(file, tar)
            yield _manifest(file, next(members, None)), members
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        msg = f"{file} cannot be read to its end ({reason}): it is damaged or cut short"
        raise ArchiveError(msg) from error


def _members(file: Path, tar: tarfile.TarFile) -> _Members:
    """Name and content of each; nothing of what else a member says is followed."""
    for info in tar:
        if not info.isfile():
            msg = f"{file} holds {info.name[:100]!r}, which is no plain file: not one of ours"
            raise ArchiveError(msg)
        content = tar.extractfile(info)
        assert content is not None  # noqa: S101 - a plain file has content
        yield info.name, iter(partial(content.read, _CHUNK), b"")


def _manifest(file: Path, first: tuple[str, Iterator[bytes]] | None) -> Manifest:
    if first is None or first[0] != MANIFEST:
        msg = f"{file} is no backup of hipscore: it does not begin with {MANIFEST}"
        raise ArchiveError(msg)
    data = b""
    for chunk in first[1]:
        data += chunk
        if len(data) > _LARGEST_MANIFEST:
            msg = f"the manifest of {file} is too large: not one of ours"
            raise ArchiveError(msg)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        msg = f"the manifest of {file} cannot be read: not one of ours, or of a newer version"
        raise ArchiveError(msg) from error
    if manifest.format != FORMAT:
        msg = f"{file} has format {manifest.format}, this version reads {FORMAT}: install a newer"
        raise ArchiveError(msg)
    return manifest


def _each(file: Path, members: _Members, manifest: Manifest, progress: Progress) -> _Members:
    """Each member that the manifest names, once, and all of them."""
    left = set(manifest.members)
    shown = iter(progress(list(manifest.members), manifest))
    for name, chunks in members:
        if name not in left:
            msg = f"{file} holds {name[:100]!r}, which its manifest does not name"
            raise ArchiveError(msg)
        left.discard(name)
        yield name, chunks
        next(shown, None)
    next(shown, None)
    if left:
        msg = (
            f"{file} lacks {len(left)} files that its manifest names, such as {min(left)}: "
            "it is damaged or cut short"
        )
        raise ArchiveError(msg)


def _checked(file: Path, name: str, chunks: Iterator[bytes], expected: Member) -> Iterator[bytes]:
    """The content; an error at its end unless it is as long and has the digest that was said."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        if size > expected.size:
            break
        yield chunk
    if size != expected.size or digest.hexdigest() != expected.sha256:
        msg = f"{name} in {file} is not what the manifest says: it is damaged"
        raise ArchiveError(msg)
