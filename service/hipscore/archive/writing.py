"""Backup: the database first, then the files that it refers to, while the service runs."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from hipscore import __version__
from hipscore.archive import database
from hipscore.archive.manifest import (
    DATABASE,
    EXTRAS,
    FORMAT,
    MANIFEST,
    ArchiveError,
    Manifest,
    Member,
    spool_name,
)
from hipscore.spool import Corrupt, Spool

_CHUNK = 1 << 20
#: how many names an error lists
_SHOWN = 5

#: wraps the files to show how far the work is
Progress = Callable[[Iterable[database.File], int], Iterable[database.File]]


def backup(
    file: Path,
    *,
    url: str,
    spool: Spool,
    extras: Mapping[str, bytes],
    now: datetime,
    overwrite: bool = False,
    without_lost: bool = False,
    progress: Progress = lambda files, _: files,
) -> Manifest:
    """Write everything into one file; it appears when it is whole.

    The files are held from before the snapshot of the database to the end, so that none of those
    it refers to is purged meanwhile. What arrives meanwhile is not in the snapshot, nor needed.

    Parameters
    ----------
    file
        The archive, compressed if its name ends in ``.gz``: half the size, a tenth of the speed.
    url
        SQLAlchemy URL of the database.
    extras
        Content of the members :data:`EXTRAS`, as far as there is any.
    now
        For the manifest, aware.
    overwrite
        Replace an archive of this name.
    without_lost
        Go on without files that are missing or damaged already, and name them in the manifest.

    Raises
    ------
    ArchiveError
        If the file exists, or anything cannot be read or written. Nothing is left behind.
    Transient
        If the spool's disk or the database fail.
    """
    if file.exists() and not overwrite:
        msg = f"{file} exists; name another file, or add --force"
        raise ArchiveError(msg)
    with spool.hold(), _folder(file, spool) as private:
        dumped = private / DATABASE
        held = database.dump(url, dumped)
        sound, lost = _sizes(held.files, spool, thorough=without_lost)
        if lost and not without_lost:
            raise ArchiveError(_lost(lost))
        members = {
            DATABASE: _member(dumped),
            **{name: _content(extras[name]) for name in EXTRAS if name in extras},
            **{
                spool_name(each.sha256): Member(size=size, sha256=each.sha256)
                for each, size in sound.items()
            },
        }
        manifest = Manifest(
            format=FORMAT,
            hipscore=__version__,
            made_at=now,
            database=held.kind,
            revision=held.revision,
            rows=held.rows,
            members=members,
            lost=tuple(each.key for each in lost),
        )
        whole = private / file.name
        with _tar(whole, compressed=file.suffix == ".gz") as tar:
            _add(tar, MANIFEST, manifest.model_dump_json(indent=1).encode(), now)
            for name in EXTRAS:
                if name in extras:
                    _add(tar, name, extras[name], now)
            with dumped.open("rb") as content:
                tar.addfile(_info(DATABASE, members[DATABASE].size, now), content)
            for each in progress(list(sound), len(sound)):
                try:
                    data = spool.read(each.key, each.sha256)
                except Corrupt as error:
                    raise ArchiveError(_lost([each])) from error
                _add(tar, spool_name(each.sha256), data, now)
        _durable(whole)
        whole.replace(file)
        _durable(file.parent)
    return manifest


def _sizes(
    files: Iterable[database.File], spool: Spool, *, thorough: bool
) -> tuple[dict[database.File, int], list[database.File]]:
    """The files with their sizes, and those that are missing or, read ``thorough``-ly, damaged."""
    sound: dict[database.File, int] = {}
    lost = []
    for each in files:
        try:
            if thorough:
                spool.read(each.key, each.sha256)
            sound[each] = spool.path(each.key).stat().st_size
        except (FileNotFoundError, Corrupt):
            lost.append(each)
    return sound, lost


def _lost(lost: list[database.File]) -> str:
    shown = ", ".join(each.key for each in lost[:_SHOWN])
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    return (
        f"{len(lost)} files of the spool are missing or damaged: {shown}{more}. Bring them back, "
        "or add --without-lost to back up the rest"
    )


@contextmanager
def _folder(file: Path, spool: Spool) -> Iterator[Path]:
    """A private folder beside the archive, gone at the end; a failing disk is one line.

    That of a backup that was killed goes first. Nobody else makes one while the files are held.
    """
    ours = hashlib.sha256(os.fsencode(spool.root)).hexdigest()[:12]
    prefix = f".hipscore-backup-{ours}-"
    try:
        for left in file.parent.glob(f"{prefix}*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=prefix) as folder:
            yield Path(folder)
    except OSError as error:
        msg = f"{file} cannot be written: {error.strerror or error}"
        raise ArchiveError(msg) from error


@contextmanager
def _tar(path: Path, *, compressed: bool) -> Iterator[tarfile.TarFile]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as raw:
        if not compressed:
            with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
                yield tar
        else:
            with tarfile.open(fileobj=raw, mode="w:gz", compresslevel=1) as tar:
                yield tar


def _add(tar: tarfile.TarFile, name: str, data: bytes, now: datetime) -> None:
    tar.addfile(_info(name, len(data), now), io.BytesIO(data))


def _info(name: str, size: int, now: datetime) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(now.timestamp())
    return info


def _content(data: bytes) -> Member:
    return Member(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _member(path: Path) -> Member:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Member(size=size, sha256=digest.hexdigest())


def _durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
