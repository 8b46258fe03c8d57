"""The spool: bytes on disk under the SHA-256 of their content, written once, never changed.

A key is ``ab/cdef…`` (two and sixty-two hexadecimal digits). When :meth:`Spool.put`
returns, the bytes and the directory entries that lead to them are on stable storage.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from hipscore.domain import Transient

_KEY = re.compile(r"[0-9a-f]{2}/[0-9a-f]{62}")
_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}
_CHUNK = 1 << 20
#: locked, shared by who deletes, exclusively by who wants all files to stay
_HOLD = "hold"
#: a temporary file that was not written to for this long belongs to nobody any more
ABANDONED_S = 3600.0
#: whoever puts a file records it within this time, or must not rely on it
SETTLED_S = 600.0


class SpoolFull(Transient):
    """The disk is full; nothing was left behind."""


class Corrupt(Exception):
    """The stored bytes are missing, or not those that were put there."""


class Stored(NamedTuple):
    """Where the bytes are, their SHA-256 in hex, and how many they are."""

    key: str
    sha256: str
    size: int


class Spool:
    """A directory of content-addressed files. Any number of processes may share it.

    Parameters
    ----------
    root
        Made, readable for this user only, if it does not exist. Temporary files that a
        killed process left there are deleted.

    Raises
    ------
    Transient
        If the directory cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._tmp = self.root / "tmp"
        with self._disk():
            _make_durably(self.root)
            self._tmp.mkdir(mode=0o700, exist_ok=True)
            # all at once, so that a put has one directory to make durable and not two
            for shard in range(256):
                (self.root / f"{shard:02x}").mkdir(mode=0o700, exist_ok=True)
            _fsync_directory(self.root)
            self.clean()

    def put(
        self, data: bytes | bytearray | Iterable[bytes], *, sha256: str | None = None
    ) -> Stored:
        """Store the bytes (in one piece or in chunks) durably; the same again touches the file.

        No purge removes the file for :data:`SETTLED_S` from now; a row that refers to it has
        to be committed by then. ``sha256`` (hex) is that of the data, where it is known.

        Raises
        ------
        SpoolFull
            If the disk is full. Nothing is left behind.
        Transient
            If the disk fails in another way.
        """
        chunks = (data,) if isinstance(data, bytes | bytearray) else data
        with self._disk():
            descriptor, name = tempfile.mkstemp(dir=self._tmp)
        temporary = Path(name)
        try:
            try:
                digest, size = self._write(descriptor, chunks, sha256)
            finally:
                os.close(descriptor)
            key = f"{digest[:2]}/{digest[2:]}"
            with self._disk():
                moved = self._place(temporary, self.path(key), digest)
        except FileNotFoundError as error:
            msg = f"a file of {self.root} was deleted while it was written"
            raise Transient(msg) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if not moved:
            temporary.unlink(missing_ok=True)
        return Stored(key, digest, size)

    def read(self, key: str, sha256: str) -> bytes:
        """The bytes under ``key``, checked against their SHA-256 (hex).

        Raises
        ------
        Corrupt
            If they are missing or their digest is another.
        Transient
            If the disk fails.
        ValueError
            If ``key`` is not a key.
        """
        path = self.path(key)
        try:
            with self._disk():
                data = path.read_bytes()
        except FileNotFoundError:
            msg = f"{path} is missing from the spool"
            raise Corrupt(msg) from None
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            msg = f"{path} has SHA-256 {found} where {sha256} was stored"
            raise Corrupt(msg)
        return data

    def path(self, key: str) -> Path:
        """The file of ``key``, always inside the root; it need not exist.

        Raises
        ------
        ValueError
            If ``key`` has another form than :meth:`put` returns.
        """
        if _KEY.fullmatch(key) is None:
            msg = f"{key!r} is not a spool key"
            raise ValueError(msg)
        return self.root / key

    def free_bytes(self) -> int:
        """Bytes that this user may still write on the disk of the spool."""
        with self._disk():
            return shutil.disk_usage(self.root).free

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep every file that is here, or put meanwhile: :meth:`discard` deletes none.

        Waits for a deletion that is under way. The hold ends with the process that has it,
        however it ends.

        Raises
        ------
        Transient
            If the disk fails.
        """
        with self._disk():
            descriptor = os.open(self.root / _HOLD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self._disk():
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # which gives the lock back

    def held(self) -> bool:
        """Whether somebody holds the files now."""
        with self._disk(), self._may_discard() as free:
            return not free

    @contextmanager
    def _may_discard(self) -> Iterator[bool]:
        """Whether nobody holds the files; and while inside, nobody does."""
        descriptor = os.open(self.root / _HOLD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def discard(self, key: str, *, unless_since: float) -> bool:
        """Delete the file of ``key`` unless it was put, also again, at or after ``unless_since``.

        Nor is it deleted while somebody holds the files (:meth:`hold`): the next sweep finds it.

        For the purge only, which has asked the database before whether the file is wanted.
        ``unless_since`` is a Unix time in seconds, at least :data:`SETTLED_S` before that
        question: whoever put the file since then may not have recorded it yet. The lock
        keeps a put from finding the file here after we have looked at its age.

        Returns
        -------
        bool
            Whether a file was deleted.

        Raises
        ------
        Transient
            If the disk fails.
        """
        path = self.path(key)
        try:
            with (
                self._disk(),
                self._may_discard() as free,
                _locked(path.parent, fcntl.LOCK_EX),
            ):
                if not free or path.stat().st_mtime >= unless_since:
                    return False
                path.unlink()
        except FileNotFoundError:
            return False
        return True  # a power cut may bring it back; the next sweep finds it

    def shards(self) -> Iterator[list[tuple[str, float, int]]]:
        """Every file, shard by shard: key, time of its last put (Unix, s) and size (bytes).

        Raises
        ------
        Transient
            If the disk fails.
        """
        for shard in range(256):
            found = []
            with self._disk(), os.scandir(self.root / f"{shard:02x}") as entries:
                for entry in entries:
                    key = f"{shard:02x}/{entry.name}"
                    with suppress(FileNotFoundError):  # another purge was faster
                        if _KEY.fullmatch(key) is not None:
                            state = entry.stat()
                            found.append((key, state.st_mtime, state.st_size))
            yield found

    def clean(self, *, abandoned_s: float = ABANDONED_S) -> int:
        """Delete temporary files of killed processes; returns how many there were."""
        limit = time.time() - abandoned_s
        gone = 0
        for left in self._tmp.iterdir():
            with suppress(FileNotFoundError):  # another process finished or cleaned it
                if left.stat().st_mtime <= limit:
                    left.unlink()
                    gone += 1
        return gone

    def _write(
        self, descriptor: int, chunks: Iterable[bytes | bytearray], known: str | None
    ) -> tuple[str, int]:
        """Write and fsync; returns the SHA-256 in hex and the number of bytes."""
        digest = hashlib.sha256()
        size = 0
        for chunk in chunks:
            if known is None:
                digest.update(chunk)
            size += len(chunk)
            with self._disk():
                _write_all(descriptor, chunk)
        with self._disk():
            os.fsync(descriptor)
        return known or digest.hexdigest(), size

    def _place(self, temporary: Path, final: Path, digest: str) -> bool:
        """Give the written file its name, unless a sound file has it already; whether it did.

        The name comes after the fsync: a file under its final name is durable, so that
        whoever finds it sound may rely on it.
        """
        with _locked(final.parent, fcntl.LOCK_SH) as directory:
            there = _has_digest(final, digest)
            if there:
                os.utime(final)  # it is young again: a purge that looks at it now lets it be
            else:
                temporary.replace(final)
            # also when it was there: the process that put it may not have come this far
            os.fsync(directory)
        return not there

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Say clearly what the disk refused; a missing file stays FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in _OUT_OF_SPACE:
                msg = f"the disk of {self.root} is full; free some space or move the data directory"
                raise SpoolFull(msg) from error
            msg = f"the disk of {self.root} fails: {error.strerror}"
            raise Transient(msg) from error


def _write_all(descriptor: int, chunk: bytes | bytearray) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _has_digest(path: Path, digest: str) -> bool:
    """Whether the file is there and sound; a damaged one is replaced by a new copy."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except FileNotFoundError:
        return False
    return found.hexdigest() == digest


def _make_durably(path: Path) -> None:
    """Make a directory and its parents; the entries that lead to it are on stable storage."""
    made = []
    while not path.exists():
        made.append(path)
        path = path.parent
    for each in reversed(made):
        each.mkdir(mode=0o700, exist_ok=True)
        _fsync_directory(each.parent)


@contextmanager
def _locked(directory: Path, how: int) -> Iterator[int]:
    """Hold the directory's flock: shared to put, exclusive to discard. Yields its descriptor."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)  # which gives the lock back


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
