"""One line an event, in UTC, without anything that names a patient."""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections.abc import Iterator

import pytest
from pydicom.dataset import Dataset

from hipscore import telemetry
from hipscore.telemetry import Stopwatch


class Log:
    """What the process wrote to standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[Log]:
    """The log; logging is put back afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    names = ("pynetdicom", "highdicom", "pydicom", "py.warnings", "celery.app.trace")
    levels = {name: logging.getLogger(name).level for name in (*names, "alembic", "httpx")}
    for handler in handlers:  # or they would be closed
        root.removeHandler(handler)
    yield Log(capsys)
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def test_an_event_is_one_line_with_time_level_process_and_name(log: Log) -> None:
    telemetry.configure("info")
    logging.getLogger("hipscore.worker").info("job %d done", 7)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO \d+ hipscore\.worker: job 7 done\n", log.getvalue()
    )


def test_times_are_utc(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        telemetry.configure()
        logging.getLogger("x").warning("w")
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert log.getvalue().startswith("1970-01-01T00:00:00Z WARNING")


def test_a_peer_cannot_forge_a_line(log: Log) -> None:
    telemetry.configure()
    logging.getLogger("x").warning("from %s", "EVIL\n2024 INFO 1 x: all is well\x1b[2J\r é")
    assert log.getvalue().count("\n") == 1
    assert r"EVIL\n2024 INFO 1 x: all is well\x1b[2J\r é" in log.getvalue()


def test_a_traceback_keeps_its_lines(log: Log) -> None:
    telemetry.configure()
    try:
        int("no")
    except ValueError:
        logging.getLogger("x").exception("failed")
    assert log.getvalue().rstrip().endswith("'no'")
    assert log.getvalue().count("\n") > 3


def test_the_level_is_the_operators(log: Log) -> None:
    telemetry.configure("WARNING")
    logging.getLogger("x").info("quiet")
    telemetry.configure("DEBUG")
    logging.getLogger("x").debug("loud")
    assert "quiet" not in log.getvalue()
    assert "loud" in log.getvalue()


def test_libraries_do_not_repeat_attributes_of_patients(log: Log) -> None:
    telemetry.configure("DEBUG")
    for name in ("pynetdicom.acse", "highdicom", "pydicom"):
        logging.getLogger(name).info("DOE^JANE")
    logging.getLogger("pydicom").warning("DOE^JANE")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        telemetry.configure("DEBUG")
        dataset = Dataset()
        dataset.PatientID = "DOE^JANE" * 20  # longer than VR LO allows: pydicom quotes it
        dataset.StudyDate = "DOE^JANE"
    assert "DOE" not in log.getvalue()


def test_a_stopwatch_adds_up_per_stage_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 5.0, 5.5, 10.0, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    with watch.stage("locate"):
        pass
    with watch.stage("assemble"):
        pass
    with watch.stage("locate"):
        pass
    assert watch.seconds == {"locate": 3.0, "assemble": 0.5}
    assert str(watch) == "locate=3.000s assemble=0.500s"


def test_a_stage_that_fails_is_timed_too() -> None:
    watch = Stopwatch()
    with pytest.raises(RuntimeError), watch.stage("segment"):
        raise RuntimeError
    assert watch.seconds["segment"] >= 0
