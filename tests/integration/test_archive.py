"""Backup and restore: everything comes back, or it is said why not and nothing changes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import inspect, text

from hipscore import archive, worker
from hipscore.archive import ArchiveError
from hipscore.archive.manifest import MANIFEST
from hipscore.cli import supervise
from hipscore.phantom import to_datasets
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import engine, queries
from hipscore.store.tables import ArtifactRow, Event, Instance, Job, Series
from tests import servers
from tests.integration import shell_steps as steps

NOW = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)
NOWHERE = "PACS@127.0.0.1:1"


@pytest.fixture
def lived(settings: Settings, tmp_path: Path) -> Settings:
    """An installation with a scored study whose results wait for a PACS that is down."""
    configured = settings.model_copy(
        update={"destinations": Settings(destinations=NOWHERE).destinations}
    )
    _scored(configured, tmp_path / "scanner", seed=1)
    return configured


def _scored(settings: Settings, folder: Path, *, seed: int) -> None:
    made = steps.make_phantom(seed)
    images = to_datasets(made)
    job = steps.received(settings, images, folder)
    with steps.bench(settings, steps.knowing((made, images))) as at:
        worker.analyse(job.id, at)


@pytest.fixture
def target(database_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """An empty machine for the same kind of database."""
    with _empty(database_url, request, tmp_path / "elsewhere") as made:
        yield made


@contextmanager
def _empty(url: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Settings]:
    folder.mkdir()
    if url.startswith("sqlite"):
        yield Settings(
            data_dir=folder, database_url=SecretStr(f"sqlite:///{folder / 'hipscore.db'}")
        )
        return
    running: servers.Postgres = request.getfixturevalue("postgres_server")
    with running.database() as other:
        yield Settings(data_dir=folder, database_url=SecretStr(other))


def back_up(settings: Settings, file: Path, **more: Any) -> archive.Manifest:
    return archive.backup(
        file,
        url=settings.database,
        spool=Spool(settings.data_dir / "spool"),
        extras={"settings.json": b"{}\n"},
        now=NOW,
        **more,
    )


def bring_back(settings: Settings, file: Path) -> archive.Manifest:
    return archive.restore(
        file,
        url=settings.database,
        spool=Spool(settings.data_dir / "spool"),
        extras=settings.data_dir / "restored",
    )


def everything(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables, in an order of their own."""
    connected = engine.connect(url)
    try:
        with connected.connect() as connection:
            return {
                name: sorted(
                    (tuple(row) for row in connection.execute(text(f'SELECT * FROM "{name}"'))),  # noqa: S608 - names of our tables
                    key=repr,
                )
                for name in inspect(connection).get_table_names()
            }
    finally:
        connected.dispose()


def wanting(settings: Settings) -> list[str]:
    """Files that rows refer to and that are not there with the right digest."""
    spool = Spool(settings.data_dir / "spool")
    return [
        row.spool_key
        for kind in (Instance, ArtifactRow)
        for row in steps.rows(settings, kind)
        if not _sound(spool, row)
    ]


def _sound(spool: Spool, row: Any) -> bool:
    return bool(spool.read(row.spool_key, row.sha256))


# --- the drill ---------------------------------------------------------------------------


def test_a_restored_machine_has_every_row_and_every_file(
    lived: Settings, target: Settings, tmp_path: Path
) -> None:
    made = back_up(lived, tmp_path / "all.tar")
    bring_back(target, tmp_path / "all.tar")
    was, now = everything(lived.database), everything(target.database)
    assert now == was
    assert made.rows == {name: len(rows) for name, rows in was.items()}
    assert {"series", "instances", "jobs", "artifacts", "deliveries", "events"} <= {
        name for name, rows in was.items() if rows
    }
    assert wanting(target) == []
    kept = {key for shard in Spool(target.data_dir / "spool").shards() for key, _, _ in shard}
    assert len(kept) == made.files > len(was["instances"])


def test_a_restored_machine_tells_the_same_and_goes_on(
    lived: Settings, target: Settings, tmp_path: Path
) -> None:
    back_up(lived, tmp_path / "all.tar")
    bring_back(target, tmp_path / "all.tar")
    (series,) = {row.study_instance_uid for row in steps.rows(lived, Series)}
    with steps.opened(lived) as was, steps.opened(target) as now, was() as one, now() as other:
        told = queries.latest_job_of_study(series, session=one)
        again = queries.latest_job_of_study(series, session=other)
    assert told is not None
    assert again is not None
    assert told.job.result is not None
    assert told.job.result["status"] == "scored"
    assert again.job.result == told.job.result
    assert [each.sop_instance_uid for each in again.artifacts] == [
        each.sop_instance_uid for each in told.artifacts
    ]
    assert [each.state for each in again.deliveries] == [each.state for each in told.deliveries]
    # ids go on where they were: a late message cannot hit another row
    connected = engine.connect(target.database)
    with connected.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO events (at, series_id, what, detail) "
                "SELECT at, series_id, 'test', '{}' FROM events WHERE id = 1"
            )
        )
    connected.dispose()
    newest = max(event.id for event in steps.rows(lived, Event))
    assert max(event.id for event in steps.rows(target, Event)) == newest + 1


def test_a_backup_under_load_is_of_one_moment(
    lived: Settings, target: Settings, tmp_path: Path
) -> None:
    """Images come, studies are scored, and a purge is tried while it is written."""
    stop = threading.Event()

    def work() -> None:
        seed = 2
        while not stop.is_set():
            _scored(lived, tmp_path / f"scanner{seed}", seed=seed)
            seed += 1

    before = len(steps.rows(lived, Event))
    with steps.at_work(work, stop):
        servers.wait_until(
            lambda: len(steps.rows(lived, Event)) > before + 5, what="images come", seconds=90
        )
        made = back_up(lived, tmp_path / "all.tar")
        servers.wait_until(
            lambda: len(steps.rows(lived, Event)) > made.rows["events"],
            what="the service goes on",
            seconds=90,
        )
    bring_back(target, tmp_path / "all.tar")
    now = everything(target.database)
    assert {name: len(rows) for name, rows in now.items()} == made.rows
    # the ledger is append-only: what was there at that moment is its beginning
    was = sorted(everything(lived.database)["events"])
    assert sorted(now["events"]) == was[: len(now["events"])]
    assert len(was) > len(now["events"])
    assert wanting(target) == []
    _follows_its_ledger(target)


def _follows_its_ledger(settings: Settings) -> None:
    """Each job is in the state that its last event says: rows and ledger are of one moment."""
    last = {
        event.job_id: event.to_state
        for event in steps.rows(settings, Event)
        if event.job_id is not None and event.delivery_id is None and event.to_state is not None
    }
    for job in steps.rows(settings, Job):
        assert last[job.id] == job.state.value


def test_nothing_is_deleted_while_a_backup_runs(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    stored = spool.put(b"an image")
    later = time.time() + 10.0
    with Spool(tmp_path / "spool").hold():
        assert spool.held()
        assert not spool.discard(stored.key, unless_since=later)
        assert spool.put(b"another").size == 7  # images come in all the same
    assert not spool.held()
    assert spool.discard(stored.key, unless_since=later)


# --- what is refused ---------------------------------------------------------------------


def test_an_archive_is_never_restored_over_something(lived: Settings, tmp_path: Path) -> None:
    back_up(lived, tmp_path / "all.tar")
    was = everything(lived.database)
    with pytest.raises(ArchiveError, match="the database is not empty"):
        bring_back(lived, tmp_path / "all.tar")
    assert everything(lived.database) == was
    assert wanting(lived) == []


def test_an_archive_is_not_overwritten_unless_that_is_asked_for(
    lived: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "all.tar"
    file.write_text("an older one")
    with pytest.raises(ArchiveError, match="exists"):
        back_up(lived, file)
    assert file.read_text() == "an older one"
    back_up(lived, file, overwrite=True)
    assert archive.check(file).database in {"sqlite", "postgresql"}
    assert file.stat().st_mode & 0o777 == 0o600


@steps.sqlite_only
def test_a_database_of_another_kind_is_refused(
    lived: Settings, tmp_path: Path, postgres_url: str
) -> None:
    back_up(lived, tmp_path / "all.tar")
    other = Settings(data_dir=tmp_path / "other", database_url=SecretStr(postgres_url))
    with pytest.raises(ArchiveError, match="holds a sqlite database"):
        bring_back(other, tmp_path / "all.tar")


Change = Callable[[dict[str, Any], dict[str, bytes]], None]


def rewritten(file: Path, change: Change, more: tarfile.TarInfo | None = None) -> Path:
    """The archive with another manifest and other members."""
    with tarfile.open(file) as tar:
        content = {
            info.name: found.read() for info in tar if (found := tar.extractfile(info)) is not None
        }
    manifest = json.loads(content.pop(MANIFEST))
    change(manifest, content)
    other = file.with_name("other.tar")
    with tarfile.open(other, "w") as tar:
        for name, data in {MANIFEST: json.dumps(manifest).encode(), **content}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if more is not None:
            tar.addfile(more)
    return other


def _first(content: Mapping[str, bytes]) -> str:
    return next(name for name in content if name.startswith("spool/"))


def _damage(manifest: dict[str, Any], content: dict[str, bytes]) -> None:
    del manifest
    name = _first(content)
    content[name] = content[name][:-1] + b"?"


def _forget(manifest: dict[str, Any], content: dict[str, bytes]) -> None:
    del manifest, content[_first(content)]


def _smuggle(name: str) -> Change:
    def change(manifest: dict[str, Any], content: dict[str, bytes]) -> None:
        del manifest
        content[name] = b"hostile"

    return change


def _declare(name: str) -> Change:
    def change(manifest: dict[str, Any], content: dict[str, bytes]) -> None:
        manifest["members"][name] = {"size": 7, "sha256": "0" * 64}
        content[name] = b"hostile"

    return change


def _said(**values: Any) -> Change:
    return lambda manifest, _: manifest.update(values)


@steps.sqlite_only
@pytest.mark.parametrize(
    ("change", "complaint"),
    (
        (_damage, "is not what the manifest says"),
        (_forget, "lacks 1 files that its manifest names"),
        (_smuggle("../outside"), "which its manifest does not name"),
        (_smuggle("/etc/hipscore-test"), "which its manifest does not name"),
        (_declare("../outside"), "the manifest of .* cannot be read"),
        (_declare("spool/00/" + "1" * 62), "the manifest of .* cannot be read"),
        (_said(revision="9999"), "schema 9999, which this version does not know"),
        (_said(format=2), "has format 2"),
        (_said(surprise=1), "the manifest of .* cannot be read"),
    ),
)
def test_what_is_not_whole_and_ours_is_refused_and_leaves_nothing(
    lived: Settings, target: Settings, tmp_path: Path, change: Change, complaint: str
) -> None:
    back_up(lived, tmp_path / "all.tar")
    _refused(rewritten(tmp_path / "all.tar", change), target, complaint)


@steps.sqlite_only
@pytest.mark.parametrize(
    "kind", (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
)
def test_links_and_devices_are_refused(
    lived: Settings, target: Settings, tmp_path: Path, kind: bytes
) -> None:
    back_up(lived, tmp_path / "all.tar")
    link = tarfile.TarInfo("spool/link")
    link.type, link.linkname = kind, "/etc/passwd"
    other = rewritten(tmp_path / "all.tar", lambda *_: None, link)
    _refused(other, target, "which is no plain file")


@steps.sqlite_only
@pytest.mark.parametrize("name", ("all.tar", "all.tar.gz"))
def test_an_archive_that_was_cut_short_is_refused(
    lived: Settings, target: Settings, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    back_up(lived, file)
    archive.check(file)
    data = file.read_bytes()
    for share in (0.0, 0.3, 0.9):
        file.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ArchiveError):
            archive.check(file)
        _refused(file, target, str(file))
    file.write_bytes(data)
    bring_back(target, file)


def _refused(file: Path, target: Settings, complaint: str) -> None:
    with pytest.raises(ArchiveError, match=complaint) as refused:
        bring_back(target, file)
    assert "\n" not in str(refused.value)
    assert not (target.data_dir / "hipscore.db").exists()
    assert [shard for shard in Spool(target.data_dir / "spool").shards() if shard] == []
    assert not (target.data_dir / "restored").exists()
    assert not list(target.data_dir.glob(".restore-*"))
    assert not (target.data_dir.parent / "outside").exists()


@steps.sqlite_only
def test_a_lost_file_is_named_and_left_out_only_if_that_is_asked_for(
    lived: Settings, tmp_path: Path
) -> None:
    spool = Spool(lived.data_dir / "spool")
    gone, damaged = sorted({row.spool_key for row in steps.rows(lived, Instance)})[:2]
    spool.path(gone).unlink()
    with pytest.raises(ArchiveError, match=gone):
        back_up(lived, tmp_path / "all.tar")
    spool.path(damaged).write_bytes(b"damaged")
    assert not list(tmp_path.glob("all.tar"))
    made = back_up(lived, tmp_path / "all.tar", without_lost=True)
    assert made.lost == (gone, damaged)
    assert archive.check(tmp_path / "all.tar").lost == (gone, damaged)


# --- processes that are killed, disks that are full ---------------------------------------


def _command(settings: Settings, *arguments: object) -> list[str]:
    given = [f"{name}={value}" for name, value in supervise.environment(settings).items()]
    return ["/usr/bin/env", *given, *supervise.service(*map(str, arguments))]


def test_a_restoration_that_is_killed_can_be_done_again(
    lived: Settings, target: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "all.tar"
    back_up(lived, file)
    data = file.read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = subprocess.Popen(_command(target, "restore", pipe), stderr=subprocess.DEVNULL)
    with pipe.open("wb") as half:
        half.write(data[: len(data) // 2])
        half.flush()
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    done = subprocess.run(
        _command(target, "restore", file), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert everything(target.database) == everything(lived.database)
    assert wanting(target) == []


@steps.sqlite_only
def test_a_backup_that_is_killed_leaves_no_archive_and_holds_nothing(
    lived: Settings, tmp_path: Path
) -> None:
    spool = Spool(lived.data_dir / "spool")
    key = max(row.spool_key for row in steps.rows(lived, Instance))
    content = spool.path(key).read_bytes()
    spool.path(key).unlink()
    os.mkfifo(spool.path(key))  # reading it blocks: there the backup is stopped
    folder = tmp_path / "backups"
    folder.mkdir()
    process = subprocess.Popen(
        _command(lived, "backup", folder / "all.tar"), stderr=subprocess.DEVNULL
    )
    servers.wait_until(lambda: bool(list(folder.glob(".*/all.tar"))), what="it writes")
    assert spool.held()
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert not spool.held()
    assert not (folder / "all.tar").exists()
    spool.path(key).unlink()
    spool.path(key).write_bytes(content)
    back_up(lived, folder / "all.tar")
    assert [path.name for path in folder.iterdir()] == ["all.tar"]


@steps.sqlite_only
def test_a_full_disk_is_one_line_and_leaves_nothing(lived: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    limited = ["bash", "-c", 'ulimit -f 600; exec "$@"', "bash"]
    done = subprocess.run(
        [*limited, *_command(lived, "backup", folder / "all.tar")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "cannot be written: File too large" in done.stderr.splitlines()[-1]
    assert list(folder.iterdir()) == []


def test_the_command_line_backs_up_checks_and_restores(
    lived: Settings, target: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "all.tar.gz"
    secret = SecretStr("redis://:geheim@broker.example/0")
    for settings, arguments in (
        (lived.model_copy(update={"broker_url": secret}), ("backup", file)),
        (lived, ("restore", "--check", file)),
        (target, ("restore", file)),
    ):
        done = subprocess.run(
            _command(settings, *arguments), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "rows" in done.stdout
    told = json.loads((target.data_dir / "restored" / "settings.json").read_text())
    assert told["ae_title"] == lived.ae_title
    assert told["broker_url"] == "redis://:********@broker.example/0"
    again = subprocess.run(
        _command(target, "restore", file), capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert "the database is not empty" in again.stderr.splitlines()[-1]
