"""The spool keeps exactly the bytes it was given, durably, and nothing else."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hipscore.domain import Transient
from hipscore.spool import Corrupt, Spool, SpoolFull

DATA = b"DICM" * 1000


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def files(spool: Spool) -> list[str]:
    """All but the empty file that is locked to keep the others."""
    found = (path for path in spool.root.rglob("*") if path.is_file() and path.name != "hold")
    return sorted(str(path.relative_to(spool.root)) for path in found)


def test_what_is_put_is_read(spool: Spool) -> None:
    stored = spool.put(DATA)
    digest = hashlib.sha256(DATA).hexdigest()
    assert stored == (f"{digest[:2]}/{digest[2:]}", digest, 4000)
    assert spool.read(stored.key, stored.sha256) == DATA
    assert files(spool) == [stored.key]


@given(chunks=st.lists(st.binary(max_size=64), max_size=6))
def test_chunks_are_the_same_as_one_piece(
    chunks: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    spool = Spool(tmp_path_factory.getbasetemp() / "spool-of-chunks")
    stored = spool.put(iter(chunks))
    assert stored == spool.put(b"".join(chunks))
    assert spool.read(stored.key, stored.sha256) == b"".join(chunks)


def test_putting_the_same_again_keeps_the_file(spool: Spool) -> None:
    first = spool.put(DATA)
    before = spool.path(first.key).stat()
    assert spool.put(DATA) == first
    assert spool.path(first.key).stat().st_ino == before.st_ino
    assert files(spool) == [first.key]


def test_putting_again_mends_a_damaged_file(spool: Spool) -> None:
    stored = spool.put(DATA)
    spool.path(stored.key).write_bytes(DATA[:100])
    spool.put(DATA)
    assert spool.read(stored.key, stored.sha256) == DATA


def test_only_this_user_may_read(spool: Spool) -> None:
    path = spool.path(spool.put(DATA).key)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", (b"", DATA[:-1], DATA + b"x", b"X" + DATA[1:]))
def test_damaged_bytes_are_never_returned(spool: Spool, damage: bytes) -> None:
    stored = spool.put(DATA)
    spool.path(stored.key).write_bytes(damage)
    with pytest.raises(Corrupt, match=stored.sha256):
        spool.read(stored.key, stored.sha256)


def test_a_missing_file_is_reported_as_such(spool: Spool) -> None:
    stored = spool.put(DATA)
    spool.path(stored.key).unlink()
    with pytest.raises(Corrupt, match="is missing"):
        spool.read(stored.key, stored.sha256)


@pytest.mark.parametrize(
    "key",
    (
        "",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "ab/../../x",
        f"ab/{'0' * 61}",
        f"ab/{'0' * 63}",
        f"AB/{'0' * 62}",
        f"ab/{'0' * 62}\n",
        f"ab/{'0' * 62}/x",
        f"ab\\{'0' * 62}",
        f"ab/{'٣' * 62}",
        "tmp/x",
    ),
)
def test_no_key_leaves_the_root(spool: Spool, key: str) -> None:
    for use in (
        spool.path,
        lambda text: spool.discard(text, unless_since=0.0),
        lambda text: spool.read(text, "0" * 64),
    ):
        with pytest.raises(ValueError, match="is not a spool key"):
            use(key)


@given(key=st.text(max_size=80))
def test_whatever_is_a_key_lies_inside_the_root(
    key: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spool = Spool(tmp_path_factory.getbasetemp() / "spool-of-keys")
    try:
        path = spool.path(key)
    except ValueError:
        return
    assert path.resolve().is_relative_to(spool.root)


# --- order of durability -----------------------------------------------------------------


def test_bytes_and_directory_are_durable_before_put_returns(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def seen_fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(spool.root)
        steps.append(f"fsync {target.parts[0]}")
        fsync(descriptor)

    def seen_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_rename)
    shard = spool.put(DATA).key[:2]
    assert steps == ["fsync tmp", "rename", f"fsync {shard}"]
    steps.clear()
    spool.put(DATA)  # another process may have renamed it and not come to the directory yet
    assert steps == ["fsync tmp", f"fsync {shard}"]


def test_the_way_to_the_root_is_durable_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    spool = Spool(tmp_path / "new" / "data" / "spool")
    root = tmp_path.resolve()
    assert synced == [root, root / "new", root / "new" / "data", spool.root]


# --- failing disks -----------------------------------------------------------------------


@pytest.mark.parametrize("call", ("write", "fsync"))
@pytest.mark.parametrize(
    ("code", "error"),
    ((errno.ENOSPC, SpoolFull), (errno.EDQUOT, SpoolFull), (errno.EIO, Transient)),
)
def test_a_failing_disk_is_transient_and_leaves_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, call: str, code: int, error: type[Exception]
) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(error, match=str(spool.root)):
        spool.put(DATA)
    monkeypatch.undo()
    assert files(spool) == []
    assert spool.read(*spool.put(DATA)[:2]) == DATA


def test_a_file_that_vanishes_while_it_is_written_is_tried_again(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def vanish(descriptor: int) -> None:  # a clock that leapt made it look abandoned
        fsync(descriptor)
        Path(f"/proc/self/fd/{descriptor}").readlink().unlink()

    monkeypatch.setattr(os, "fsync", vanish)
    with pytest.raises(Transient, match="deleted while it was written"):
        spool.put(DATA)


def test_a_really_full_disk_is_spool_full(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)  # every write there is ENOSPC, from the kernel
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(full, data))
    with pytest.raises(SpoolFull, match="is full"):
        spool.put(DATA)
    os.close(full)
    assert files(spool) == []


def test_short_writes_are_continued(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    stored = spool.put(DATA)
    assert spool.read(stored.key, stored.sha256) == DATA


def test_a_sender_that_breaks_off_leaves_nothing(spool: Spool) -> None:
    def chunks() -> Iterator[bytes]:
        yield DATA
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        spool.put(chunks())
    assert files(spool) == []


def test_a_root_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Transient, match="file/spool"):
        Spool(tmp_path / "file" / "spool")


# --- temporary files and space -----------------------------------------------------------


def test_the_start_cleans_what_killed_processes_left(spool: Spool) -> None:
    stored = spool.put(DATA)
    abandoned, in_use = spool.root / "tmp" / "abandoned", spool.root / "tmp" / "in-use"
    abandoned.write_bytes(DATA)
    in_use.write_bytes(DATA)
    os.utime(abandoned, (0, 0))
    Spool(spool.root)
    assert files(spool) == sorted([stored.key, "tmp/in-use"])
    assert spool.clean(abandoned_s=-1) == 1
    assert files(spool) == [stored.key]


def test_free_bytes_are_those_of_its_disk(spool: Spool) -> None:
    disk = os.statvfs(spool.root)
    assert spool.free_bytes() == pytest.approx(disk.f_bavail * disk.f_frsize, rel=0.05)


def test_any_number_of_threads_may_put_the_same(spool: Spool) -> None:
    together = threading.Barrier(8)
    keys: list[str] = []

    def put() -> None:
        together.wait()
        keys.append(Spool(spool.root).put(DATA).key)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert files(spool) == [keys[0]]
    assert spool.read(keys[0], hashlib.sha256(DATA).hexdigest()) == DATA


# --- what is no longer wanted --------------------------------------------------------------


def aged(spool: Spool, key: str, seconds: float) -> None:
    """As if the file had been put so long ago."""
    then = time.time() - seconds
    os.utime(spool.path(key), (then, then))


def test_an_old_file_is_discarded_and_a_young_one_stays(spool: Spool) -> None:
    key = spool.put(DATA).key
    assert not spool.discard(key, unless_since=time.time() - 60)
    aged(spool, key, 61)
    assert spool.discard(key, unless_since=time.time() - 60)
    assert not spool.discard(key, unless_since=time.time() - 60)
    assert files(spool) == []


def test_putting_again_makes_a_file_young(spool: Spool) -> None:
    key = spool.put(DATA).key
    aged(spool, key, 3600)
    spool.put(DATA)
    assert not spool.discard(key, unless_since=time.time() - 60)


def test_a_put_that_has_found_the_old_file_is_not_robbed_of_it(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The purge comes between the look at the old file and the touch."""
    stored = spool.put(DATA)
    aged(spool, stored.key, 3600)
    discarded: list[bool] = []
    purge = threading.Thread(
        target=lambda: discarded.append(spool.discard(stored.key, unless_since=time.time() - 60))
    )
    touch = os.utime

    def late_touch(path: Path) -> None:
        purge.start()
        purge.join(0.2)  # time enough to delete the file, if it could
        touch(path)

    monkeypatch.setattr(os, "utime", late_touch)
    assert spool.put(DATA) == stored
    purge.join()
    assert discarded == [False]
    assert spool.read(stored.key, stored.sha256) == DATA


def test_shards_list_every_file_with_its_time_and_size(spool: Spool) -> None:
    first, second = spool.put(DATA), spool.put(b"x")
    aged(spool, first.key, 100)
    (spool.root / "tmp" / "half-written").touch()
    found = {key: (put, size) for shard in spool.shards() for key, put, size in shard}
    assert set(found) == {first.key, second.key}
    assert [found[key][1] for key in (first.key, second.key)] == [len(DATA), 1]
    assert found[first.key][0] == pytest.approx(time.time() - 100, abs=5)
    assert found[second.key][0] == pytest.approx(time.time(), abs=5)
