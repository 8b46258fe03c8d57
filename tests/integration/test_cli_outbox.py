"""``why``, ``jobs``, ``retry`` and ``purge`` as an operator meets them after an outage."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from hipscore.cli import group
from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import engine
from hipscore.store.tables import ArtifactRow, Delivery, Event, Instance, Job
from tests.integration import shell_steps as shell
from tests.integration import store_steps as steps
from tests.integration.store_steps import ARCHIVE, PACS, SERIES

LONG_AGO = datetime.now(UTC) - timedelta(days=100)


def run(*arguments: str, answer: str | None = None) -> tuple[int, str]:
    """Run a command in this process: its exit code, and what it wrote to either stream."""
    result = CliRunner().invoke(group, list(arguments), input=answer)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def installation(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """An installation with two scored series of long ago, all of whose files are there."""
    monkeypatch.setenv("HIPSCORE_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("HIPSCORE_DATABASE_URL", settings.database)
    monkeypatch.setenv("HIPSCORE_BROKER_URL", settings.broker)
    connected = engine.connect(settings.database)
    spool = Spool(settings.data_dir / "spool")
    monkeypatch.setattr(steps, "NOW", LONG_AGO)
    with engine.sessions(connected).begin() as session:
        for number in range(2):
            job = None
            for image in range(3):
                arrived = steps.receive(
                    steps.image(image, series=f"{SERIES}.{number}"), session=session, now=LONG_AGO
                )
            job = steps.open_job(arrived.series_id, session=session, now=LONG_AGO)
            assert steps.claim(job.id, session=session, now=LONG_AGO)
            steps.finish(job.id, session=session, destinations=(PACS, ARCHIVE), now=LONG_AGO)
        for row in (*session.query(Instance), *session.query(ArtifactRow)):
            stored = spool.put(f"{type(row)} {row.id}".encode() * 1000)
            row.spool_key, row.sha256, row.size = stored
            os.utime(spool.path(stored.key), (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
    yield settings
    connected.dispose()


def settle(settings: Settings, *states: DeliveryState) -> None:
    """The deliveries of the jobs, each state for one after another, end like this."""
    connected = engine.connect(settings.database)
    with engine.sessions(connected).begin() as session:
        rows = session.query(Delivery).order_by(Delivery.id).all()
        for number, row in enumerate(rows):
            row.state = states[min(number, len(states) - 1)]
            row.finished_at, row.attempts = LONG_AGO, 60
            row.error = f"{row.destination} cannot be reached"
    connected.dispose()


def states(settings: Settings) -> list[str]:
    return [row.state.value for row in shell.rows(settings, Delivery)]


def test_a_withdrawn_result_is_marked_in_the_list_of_jobs(installation: Settings) -> None:
    connected = engine.connect(installation.database)
    with engine.sessions(connected).begin() as session:
        row = session.query(Job).order_by(Job.id).first()
        assert row is not None
        row.withdrawn_at = LONG_AGO
        withdrawn = row.id
    connected.dispose()
    rows = json.loads(run("jobs", "--json")[1])
    marked = {row["id"]: row["withdrawn"] is not None for row in rows}
    assert [job_id for job_id, is_marked in marked.items() if is_marked] == [withdrawn]
    assert "withdrawn" in run("jobs")[1]


def test_what_is_undelivered_is_listed_with_the_worst_first(installation: Settings) -> None:
    settle(
        installation,
        DeliveryState.COMMITTED,
        DeliveryState.PENDING,
        DeliveryState.REFUSED,
        DeliveryState.EXHAUSTED,
        DeliveryState.SENT,
    )
    code, output = run("jobs", "--undelivered", "--json")
    assert code == 0
    rows = json.loads(output)
    assert [row["state"] for row in rows] == ["EXHAUSTED", "REFUSED", "PENDING"]
    assert rows[0]["destination"] == ARCHIVE
    assert rows[0]["error"] == f"{ARCHIVE} cannot be reached"
    code, output = run("jobs", "--undelivered")
    assert output.splitlines()[0].split()[:4] == ["delivery", "state", "what", "destination"]
    assert "60" in output.splitlines()[2]
    code, output = run("jobs")
    assert "SEG committed; SEG waiting; SR refused; SR given up" in output
    settle(installation, DeliveryState.COMMITTED)
    assert run("jobs", "--undelivered") == (0, "nothing is undelivered\n")


def test_all_that_was_given_up_is_sent_again(installation: Settings) -> None:
    settle(installation, DeliveryState.EXHAUSTED)
    code, output = run("retry", "--all-exhausted", "--destination", ARCHIVE)
    assert (code, output) == (0, f"4 deliveries to {ARCHIVE} are queued again\n")
    assert states(installation).count("PENDING") == 4
    assert run("retry", "--all-exhausted") == (0, "4 deliveries are queued again\n")
    assert states(installation) == ["PENDING"] * 8


@pytest.mark.parametrize("arguments", ((), ("1", "--all-exhausted"), ("1", "--destination", PACS)))
def test_retry_wants_one_thing(installation: Settings, arguments: tuple[str, ...]) -> None:
    code, output = run("retry", *arguments)
    assert code == 2
    assert "--all-exhausted" in output
    assert states(installation) == ["PENDING"] * 8


def test_why_prints_one_screen_or_everything(installation: Settings) -> None:
    settle(installation, DeliveryState.EXHAUSTED)
    code, output = run("why", steps.STUDY)
    assert code == 0
    assert len(output.splitlines()) <= 24
    assert f"SEG and SR given up at {LONG_AGO:%Y-%m-%d %H:%M} after 60 tries" in output
    assert "next: mend the way to" in output
    code, output = run("why", steps.STUDY, "--all")
    assert len(output.splitlines()) > 24
    code, output = run("why", steps.STUDY, "--json")
    told = json.loads(output)
    assert len(told["events"]) == len(shell.rows(installation, Event))
    assert [each["series_instance_uid"] for each in told["verdict"]] == [
        f"{SERIES}.0",
        f"{SERIES}.1",
    ]
    code, output = run("why", "1.2.3")
    assert code == 1
    assert "nothing is known of 1.2.3" in output


def test_purge_shows_asks_and_deletes(installation: Settings) -> None:
    settle(installation, *[DeliveryState.COMMITTED] * 4, DeliveryState.PENDING)
    code, output = run("purge", "--dry-run")
    assert code == 0
    assert f"{SERIES}.0" in output
    assert f"{SERIES}.1" not in output  # undelivered
    assert run("purge", answer="n\n")[0] == 1
    assert all(row.purged_at is None for row in shell.rows(installation, Instance))
    code, output = run("purge", answer="y\n")
    assert code == 0
    assert "deleted 3 files" in output
    here = [row.purged_at is None for row in shell.rows(installation, Instance)]
    assert here == [False] * 3 + [True] * 3
    assert run("purge", "--dry-run") == (0, "nothing to purge\n")


def test_purge_by_other_ages_and_as_json(installation: Settings) -> None:
    settle(installation, DeliveryState.COMMITTED)
    assert run("purge", "--json")[0] == 2
    code, output = run("purge", "--images-older-than", "1000", "--yes", "--json")
    assert json.loads(output)["lots"] == []
    code, output = run("purge", "--results-older-than", "50", "--yes", "--json")
    assert code == 0
    told = json.loads(output[output.index("{") :])
    assert [lot["what"] for lot in told["lots"]] == ["images"] * 2 + ["results"] * 2
    assert told["deleted"]["files"] == 2 * 3 + 2 * 2
    kept = [row.kind for row in shell.rows(installation, ArtifactRow) if row.purged_at is None]
    assert kept == [ArtifactKind.OVERLAY] * 2
