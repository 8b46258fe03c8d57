"""The command line with real databases, peers and processes; what fails is one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom import dcmread

from hipscore import phantom
from hipscore.cli import group
from hipscore.settings import Settings
from hipscore.store import engine
from hipscore.store.tables import Job, Series
from tests import servers
from tests.integration import shell_steps as steps

BAD_URL = "mysql://hip:open-sesame@db/hip"


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command in this process: its exit code, and what it wrote to either stream."""
    result = CliRunner(env=environment).invoke(group, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def spawn(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command that serves (if nothing is wrong) in a process of its own."""
    ports = {f"HIPSCORE_{kind}_PORT": str(servers.free_port()) for kind in ("DICOM", "HTTP")}
    ended = subprocess.run(
        [sys.executable, "-m", "hipscore", *arguments],
        env={**os.environ, **ports, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def one_line(output: str) -> str:
    """The only line of the output, which must be one."""
    (line,) = output.splitlines()
    return line


# --- what is wrong around a command ------------------------------------------------------


@pytest.mark.parametrize("command", ("listen", "work", "beat", "serve", "up"))
def test_an_unusable_data_directory_is_one_line(command: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hipscore.db'}"
    engine.upgrade(url)
    (tmp_path / "file").touch()
    data = tmp_path / "file" / "data"
    code, output = spawn(
        command,
        HIPSCORE_DATA_DIR=str(data),
        HIPSCORE_DATABASE_URL=url,
        HIPSCORE_BROKER_URL=f"redis+socket://{tmp_path}/no.sock",
    )
    assert code == 1
    assert "Traceback" not in output
    assert str(data) in output.splitlines()[-1]


@pytest.mark.parametrize("command", ("why 1.2", "jobs", "retry 1"))
@pytest.mark.parametrize("url", (BAD_URL, "nonsense"))
def test_a_bad_database_url_is_one_line(command: str, url: str) -> None:
    code, output = run(*command.split(), HIPSCORE_DATABASE_URL=url)
    assert code == 1
    line = one_line(output)
    assert "HIPSCORE_DATABASE_URL" in line
    assert "sqlite:///PATH" in line
    assert "open-sesame" not in line


def test_up_says_what_is_wrong_with_the_database_url(tmp_path: Path) -> None:
    code, output = spawn("up", HIPSCORE_DATA_DIR=str(tmp_path), HIPSCORE_DATABASE_URL=BAD_URL)
    assert code == 1
    assert "sqlite:///PATH" in output.splitlines()[-1]
    assert "open-sesame" not in output


def test_a_database_that_is_away_is_one_line() -> None:
    url = f"postgresql+psycopg://hip:open-sesame@127.0.0.1:{servers.free_port()}/x"
    code, output = run("jobs", HIPSCORE_DATABASE_URL=url)
    assert code == 1
    assert "HIPSCORE_DATABASE_URL" in one_line(output)
    assert "open-sesame" not in output


@pytest.mark.parametrize("command", ("why 1.2", "jobs", "retry 1"))
def test_before_the_schema_is_made_it_says_how_to_make_it(
    command: str, database_url: str, tmp_path: Path
) -> None:
    code, output = run(*command.split(), HIPSCORE_DATABASE_URL=database_url)
    assert code == 1
    assert "hipscore db upgrade" in one_line(output)
    assert list(tmp_path.rglob("*.db")) == []


# --- the ledger and the queue ------------------------------------------------------------


@pytest.fixture
def installation(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An installation whose settings the commands see."""
    monkeypatch.setenv("HIPSCORE_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("HIPSCORE_DATABASE_URL", settings.database)
    monkeypatch.setenv("HIPSCORE_BROKER_URL", settings.broker)
    return settings


def test_why_and_jobs_tell_about_a_series_and_its_job(
    installation: Settings, tmp_path: Path
) -> None:
    images = steps.images()
    job = steps.received(installation, images, tmp_path)
    code, output = run("why", str(images[0].StudyInstanceUID), "--json")
    assert code == 0
    told = json.loads(output)
    assert [row["what"] for row in told["events"]] == ["open", "close", "match", "open"]
    assert told["verdict"][0]["sentences"][0].startswith("queued")
    code, output = run("jobs", "--json")
    assert code == 0
    (row,) = json.loads(output)
    assert (row["id"], row["state"]) == (job.id, "QUEUED")
    assert run("retry", str(job.id)) == (0, f"job {job.id} is queued again\n")
    code, output = run("retry", "404")
    assert code == 1
    assert "404" in one_line(output)


@steps.sqlite_only
def test_reading_does_not_wait_for_a_writer(installation: Settings) -> None:
    connected = engine.connect(installation.database)
    with connected.begin():  # holds the write lock
        began = time.monotonic()
        assert run("jobs")[0] == 0
        assert time.monotonic() - began < engine.BUSY_SECONDS / 2
    connected.dispose()


# --- files ---------------------------------------------------------------------------------


@steps.sqlite_only
def test_send_calls_with_our_own_title(
    installation: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.save(steps.images()[:1], tmp_path / "one")
    steps.save(steps.images(2)[:1], tmp_path / "two")
    monkeypatch.setenv("HIPSCORE_AE_TITLE", "OURS")
    with steps.listening(installation) as port:
        peer = f"HIPSCORE@{servers.LOOPBACK}:{port}"
        assert run("send", str(tmp_path / "one"), "--to", peer)[0] == 0
        assert run("send", str(tmp_path / "two"), "--to", peer, "--from", "OTHER")[0] == 0
    assert [row.calling_aet for row in steps.rows(installation, Series)] == ["OURS", "OTHER"]
    assert steps.count(installation, Job) == 0


@pytest.fixture
def _in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_score_writes_pdf_and_captures_when_asked(tmp_path: Path) -> None:
    images = phantom.to_datasets(steps.make_phantom(anatomy="brain"))
    steps.save(images, tmp_path / "images")
    where = ("score", str(tmp_path / "images"), "--out", str(tmp_path / "out"))
    code, output = run(*where, "--pdf", "--sc")
    assert code == 0, output
    (folder,) = (tmp_path / "out").iterdir()
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
    assert dcmread(folder / "report.dcm").Modality == "DOC"
    assert [each.name for each in (folder / "captures").iterdir()] == ["000.dcm"]
    result = json.loads((folder / "result.json").read_text())
    assert result["artifacts"]["pdf"] == str(folder / "report.pdf")
    assert result["artifacts"]["sc"] == str(folder / "captures")
    assert result["change"] is None
    assert run(*where)[0] == 0  # again, without: nothing of before is left
    assert {each.name for each in folder.iterdir() if each.is_file()} == {
        "sr.dcm", "overlay.png", "result.json",
    }  # fmt: skip
    assert list((folder / "captures").iterdir()) == []


@pytest.mark.usefixtures("_in_tokyo")
def test_score_writes_local_times(tmp_path: Path) -> None:
    images = phantom.to_datasets(steps.make_phantom(anatomy="brain"))
    steps.save(images, tmp_path / "images")
    code, output = run("score", str(tmp_path / "images"), "--out", str(tmp_path / "out"))
    assert code == 0, output
    (folder,) = (tmp_path / "out").iterdir()
    assert json.loads((folder / "result.json").read_text())["created_at"].endswith("+09:00")
    report = dcmread(folder / "sr.dcm")
    written = time.strptime(f"{report.ContentDate}{report.ContentTime[:6]}", "%Y%m%d%H%M%S")
    assert abs(time.mktime(written) - time.time()) < 120
