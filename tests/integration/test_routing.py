"""The rules at work: what is ignored, what is told to a study in which nothing matched."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy.orm import Session, sessionmaker

from hipscore import phantom, worker
from hipscore.api import create_app
from hipscore.cli import group
from hipscore.domain import ReceivedInstance
from hipscore.header import read_header
from hipscore.keeping import Closing
from hipscore.lifecycle import CloseReason, IllegalMove, JobState, SeriesState
from hipscore.settings import Settings
from hipscore.store import account, explaining, recording
from hipscore.store import engine as store
from hipscore.store.tables import Delivery, Event, Instance, Job, Series
from hipscore.store.why import explain
from tests import servers
from tests.analytic import CARD
from tests.integration import shell_steps as steps
from tests.integration.store_steps import at_once

STUDY = "2.25.4711"
QUIET = 3600.0


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def patient(settings: Settings) -> Settings:
    """Settings with a quiet period that ends when a test says so."""
    return settings.model_copy(update={"quiet_seconds": QUIET})


def offered(number: int, *, study: str = STUDY, slices: int = 6, **how: Any) -> tuple[Dataset, ...]:
    """Series ``number`` of the study."""
    made = {name: how.pop(name) for name in ("fat_suppressed",) if name in how}
    truth = steps.make_phantom(number, rows=64, slices=slices, **how)
    uid = f"{study}.{number}"
    return tuple(phantom.to_datasets(truth, study_uid=study, series_uid=uid, **made))


def arrive(at: worker.Bench, images: Sequence[Dataset], folder: Path, *, called: str) -> int:
    """The images are kept, as by a listener; the id of their series."""
    series_id = 0
    for path in steps.save(images, folder):
        data = path.read_bytes()
        instance: ReceivedInstance = read_header(data)
        arrival = recording.Arrival(
            instance=instance,
            spool_key=at.spool.put(data, sha256=instance.sha256).key,
            calling_aet="SCANNER",
            called_aet=called,
            peer="10.0.0.7",
            association_id=folder.name,
        )
        with store.transaction(at.sessions) as session:
            series_id = recording.record(arrival, now=now(), session=session).series_id
    return series_id


class Clinic:
    """A service without processes: series arrive and are closed, time passes, the reaper comes."""

    def __init__(self, at: worker.Bench, settings: Settings, folder: Path) -> None:
        self.at = at
        self.settings = settings
        self._folder = folder
        self._visits = 0

    @property
    def closing(self) -> Closing:
        return self.at.closing()

    def receive(self, images: Sequence[Dataset], *, called: str = "HIPSCORE") -> int:
        """A series arrives and stays open."""
        self._visits += 1
        return arrive(self.at, images, self._folder / str(self._visits), called=called)

    def take(self, images: Sequence[Dataset], *, called: str = "HIPSCORE") -> int:
        """A series arrives and is complete."""
        series_id = self.receive(images, called=called)
        self.closing.close(series_id, CloseReason.EXPECTED_COUNT)
        return series_id

    def wait(self) -> None:
        """The quiet period passes for all that has arrived."""
        with self.at.sessions.begin() as session:
            for series in session.query(Series):
                series.last_received_at -= timedelta(seconds=QUIET + 1)

    def reap(self) -> None:
        worker.reap(self.at)

    def series(self) -> list[tuple[SeriesState, str | None]]:
        return [(row.state, row.match_rule) for row in steps.rows(self.settings, Series)]

    def jobs(self) -> list[int]:
        """Series of the jobs, oldest job first."""
        return [job.series_id for job in steps.rows(self.settings, Job)]


@pytest.fixture
def clinic(patient: Settings, tmp_path: Path) -> Iterator[Clinic]:
    with steps.bench(patient) as at:
        yield Clinic(at, patient, tmp_path / "scanner")


IGNORED = (SeriesState.IGNORED, "no_rule")
EXPLAINED = (SeriesState.MATCHED, "explained")
SCORED = (SeriesState.MATCHED, "hip-fat-suppressed")


# --- a study in which nothing matches -------------------------------------------------------


def test_a_study_in_which_nothing_matches_gets_one_report_after_the_quiet_period(
    clinic: Clinic,
) -> None:
    t1 = clinic.take(offered(1, fat_suppressed=False))
    clinic.take(offered(2, fat_suppressed=False, plane="axial"))
    clinic.reap()
    assert clinic.series() == [IGNORED, IGNORED]
    assert clinic.jobs() == []

    clinic.wait()
    for _ in range(3):
        clinic.reap()
    assert clinic.series() == [EXPLAINED, IGNORED]
    (job,) = steps.rows(clinic.settings, Job)
    assert (job.series_id, job.state) == (t1, JobState.QUEUED)

    worker.analyse(job.id, clinic.at)
    (done,) = steps.rows(clinic.settings, Job)
    assert (done.state, done.reason_code) == (JobState.NOT_SCORABLE, "not_fat_suppressed")


def test_the_nearest_series_is_taken_by_conditions_then_by_images(clinic: Clinic) -> None:
    clinic.take(offered(1, fat_suppressed=False, plane="axial", slices=9))
    clinic.take(offered(2, fat_suppressed=False, slices=5))
    most = clinic.take(offered(3, fat_suppressed=False, slices=7))
    clinic.take(offered(4, fat_suppressed=False, slices=7))
    clinic.wait()
    clinic.reap()
    assert clinic.jobs() == [most]


def test_nothing_is_explained_while_the_study_is_in_work(clinic: Clinic) -> None:
    clinic.take(offered(1, fat_suppressed=False))
    clinic.wait()
    coming = clinic.receive(offered(2)[:3])
    clinic.reap()
    assert clinic.jobs() == []
    clinic.closing.close(coming, CloseReason.EXPECTED_COUNT)
    clinic.wait()
    clinic.reap()
    assert clinic.series() == [IGNORED, SCORED]
    assert clinic.jobs() == [coming]


def test_other_series_of_a_study_with_a_match_get_no_report(clinic: Clinic) -> None:
    clinic.take(offered(1, fat_suppressed=False))
    stir = clinic.take(offered(2))
    clinic.wait()
    clinic.reap()
    assert clinic.jobs() == [stir]


def test_a_study_of_scouts_and_reformats_is_left_alone(clinic: Clinic) -> None:
    for number, kind in ((1, "LOCALIZER"), (2, "MPR")):
        images = offered(number)
        for image in images:
            image.ImageType = ["DERIVED", "SECONDARY", kind]
        clinic.take(images)
    clinic.wait()
    clinic.reap()
    assert [rule for _, rule in clinic.series()] == ["localizer", "derived"]
    assert clinic.jobs() == []


@steps.sqlite_only
def test_without_the_wish_nothing_is_explained(patient: Settings, tmp_path: Path) -> None:
    silent = patient.model_copy(update={"explain_unmatched": False})
    with steps.bench(silent) as at:
        clinic = Clinic(at, silent, tmp_path / "scanner")
        clinic.take(offered(1, fat_suppressed=False))
        clinic.wait()
        clinic.reap()
        assert clinic.jobs() == []


def test_a_series_that_matches_later_is_scored_beside_the_explained_one(clinic: Clinic) -> None:
    t1 = clinic.take(offered(1, fat_suppressed=False))
    clinic.wait()
    clinic.reap()
    stir = clinic.take(offered(2))
    clinic.wait()
    clinic.reap()
    assert clinic.series() == [EXPLAINED, SCORED]
    assert clinic.jobs() == [t1, stir]


def test_a_late_image_on_the_explained_series_makes_a_report_that_supersedes_it(
    clinic: Clinic,
) -> None:
    images = offered(1, fat_suppressed=False)
    t1 = clinic.take(images[:-1])
    clinic.take(offered(2, fat_suppressed=False, slices=5))
    clinic.wait()
    clinic.reap()
    assert clinic.receive(images[-1:]) == t1
    clinic.wait()
    clinic.reap()  # closes it, and explains the study again
    assert clinic.series() == [EXPLAINED, IGNORED]
    first, second = steps.rows(clinic.settings, Job)
    assert (first.series_id, second.series_id) == (t1, t1)
    assert second.supersedes_id == first.id


def test_reapers_that_come_at_once_open_one_job(clinic: Clinic) -> None:
    for number in (1, 2, 3):
        clinic.take(offered(number, fat_suppressed=False))
    clinic.wait()
    before = now() - timedelta(seconds=QUIET)
    at_once([lambda: clinic.closing.explain(STUDY, quiet_before=before) for _ in range(4)])
    assert clinic.jobs() == [1]


def test_reapers_that_choose_differently_open_one_job_too(
    clinic: Clinic, maker: sessionmaker[Session]
) -> None:
    ids = [clinic.take(offered(number, fat_suppressed=False)) for number in (1, 2)]
    clinic.wait()

    def choose(series_id: int) -> None:
        with store.transaction(maker) as session:
            explaining.order(
                series_id,
                "explained",
                card=CARD,
                unmatched_since=now() - timedelta(seconds=QUIET),
                now=now(),
                session=session,
            )

    at_once([lambda each=each: choose(each) for each in ids])  # type: ignore[misc]
    assert len(clinic.jobs()) == 1


def test_studies_are_explained_one_by_one_and_only_recent_ones(clinic: Clinic) -> None:
    for number in (1, 2, 3):
        clinic.take(offered(number, study=f"2.25.99{number}", fat_suppressed=False))
    clinic.wait()
    with clinic.at.sessions.begin() as session:
        session.get_one(Series, 3).last_received_at -= explaining.HORIZON
        before = now() - timedelta(seconds=QUIET)
        assert explaining.unexplained(before=before, session=session) == ["2.25.991", "2.25.992"]
        assert explaining.unexplained(before=before, limit=1, session=session) == ["2.25.991"]
    clinic.reap()
    assert clinic.jobs() == [1, 2]


@steps.sqlite_only
def test_a_study_whose_images_are_gone_is_not_explained(clinic: Clinic) -> None:
    clinic.take(offered(1, fat_suppressed=False))
    clinic.wait()
    with clinic.at.sessions.begin() as session:
        for row in session.query(Instance):
            row.purged_at = now()
    clinic.reap()
    assert clinic.jobs() == []


# --- asked for ------------------------------------------------------------------------------


def test_a_series_that_somebody_asks_for_is_analysed_whatever_the_rules_say(
    clinic: Clinic,
) -> None:
    ignored = clinic.take(offered(1, plane="axial"))
    scored = clinic.take(offered(2))
    job = clinic.closing.order(ignored)
    assert (job.series_id, job.state) == (ignored, JobState.QUEUED)
    assert clinic.closing.order(ignored).id == job.id
    assert clinic.closing.order(scored).series_id == scored
    assert clinic.jobs() == [scored, ignored]
    assert clinic.series() == [(SeriesState.MATCHED, "ordered"), SCORED]


def test_a_late_image_of_a_series_that_was_asked_for_is_analysed_with_it(clinic: Clinic) -> None:
    images = offered(1, plane="axial")
    series_id = clinic.take(images[:-1])
    clinic.closing.order(series_id)
    clinic.take(images[-1:])
    assert clinic.series() == [(SeriesState.MATCHED, "ordered")]
    assert clinic.jobs() == [series_id, series_id]


@steps.sqlite_only
def test_a_series_that_is_arriving_cannot_be_asked_for(clinic: Clinic) -> None:
    with pytest.raises(IllegalMove, match="'order' is not possible in state RECEIVING"):
        clinic.closing.order(clinic.receive(offered(1)[:2]))


# --- what is told ---------------------------------------------------------------------------


@steps.sqlite_only
def test_the_ledger_and_why_say_which_condition_failed(clinic: Clinic) -> None:
    images = offered(1, fat_suppressed=False)
    for image in images:
        image.SeriesDescription = "T1 cor Secret"
    clinic.take(images)
    clinic.wait()

    def told(*, explains: bool = False) -> tuple[str, str]:
        with store.transaction(clinic.at.sessions) as session:
            (found,) = account.find(STUDY, session=session).accounts
            around = account.surroundings(
                quiet_seconds=QUIET, explains=explains, now=now(), session=session
            )
        verdict = explain(found, around)
        return " ".join(verdict.sentences), " ".join(verdict.what_next)

    failed = "rule hip-fat-suppressed (score): not met: fat suppressed (2 of 3 hold)"
    sentences, advice = told()
    assert f"no rule matches it; nothing is sent. {failed}" in sentences
    assert "hipscore rules test" in advice
    sentences, advice = told(explains=True)
    assert f"no rule matches it. {failed}" in sentences
    assert "nothing is sent" not in sentences
    assert re.search(r"a report that says why follows at \d\d:\d\d:\d\d, unless", advice)
    clinic.reap()
    sentences, _ = told()
    assert f"this one came nearest, and its report says why. {failed}" in sentences
    ledger = " ".join(str(event.detail) for event in steps.rows(clinic.settings, Event))
    assert failed in ledger
    assert "Secret" not in ledger


def asked(settings: Settings) -> httpx.Response:
    """What the API answers about the score of the study."""

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(settings))
        base = f"http://127.0.0.1:{settings.http_port}"
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            return await client.get(f"/studies/{STUDY}/score")

    return asyncio.run(get())


@steps.sqlite_only
def test_the_score_is_pending_until_the_study_is_explained(clinic: Clinic) -> None:
    clinic.take(offered(1, fat_suppressed=False))
    ours = clinic.settings
    silent = ours.model_copy(update={"explain_unmatched": False})
    waiting = asked(ours)
    assert (waiting.status_code, waiting.json()["status"]) == (202, "queued")
    assert asked(silent).status_code == 404
    clinic.wait()
    clinic.reap()
    worker.analyse(1, clinic.at)
    final = asked(ours)
    assert (final.status_code, final.json()["reason"]["code"]) == (200, "not_fat_suppressed")


# --- two hospitals --------------------------------------------------------------------------


@contextlib.contextmanager
def pacs(folder: Path, title: str) -> Iterator[servers.StoreScp]:
    folder.mkdir()
    with servers.storescp(folder, ae_title=title) as running:
        yield running


@steps.sqlite_only
def test_two_called_ae_titles_lead_to_two_pacs(settings: Settings, tmp_path: Path) -> None:
    with pacs(tmp_path / "n", "NORTH") as north, pacs(tmp_path / "s", "SOUTH") as south:
        path = tmp_path / "rules.toml"
        path.write_text(
            f"""
            [[destination]]
            name = "north"
            address = "{north.peer}"
            [[destination]]
            name = "south"
            address = "{south.peer}"
            artifacts = ["sr"]
            [[rule]]
            name = "north"
            from = {{ called = "HIPS_NORTH" }}
            orientation = "coronal"
            fat_suppressed = true
            destinations = ["north"]
            [[rule]]
            name = "south"
            from = {{ called = "HIPS_SOUTH" }}
            orientation = "coronal"
            fat_suppressed = true
            destinations = ["south"]
            """,
            "utf-8",
        )
        both = settings.model_copy(
            update={"rules": path, "called_ae_titles": ("HIPS_NORTH", "HIPS_SOUTH")}
        )
        studies = {
            title: (steps.make_phantom(seed), steps.images(seed))
            for seed, title in ((1, "HIPS_NORTH"), (2, "HIPS_SOUTH"))
        }
        with steps.listening(both) as port:
            for title, (_, images) in studies.items():
                sent = steps.storescu(port, steps.save(images, tmp_path / title), called=title)
                assert sent.returncode == 0, sent.stderr
            stranger = steps.storescu(port, steps.save(steps.images(3), tmp_path / "x"))
            assert stranger.returncode != 0  # called HIPSCORE, which is none of the two
            servers.wait_until(
                lambda: [row.state for row in steps.rows(both, Series)] == ["MATCHED"] * 2,
                what="both series are matched",
            )
        with steps.bench(both, steps.knowing(*studies.values())) as at:
            for job in steps.rows(both, Job):
                worker.analyse(job.id, at)
            for row in steps.rows(both, Delivery):
                worker.deliver(row.id, at)

        def arrived(scp: servers.StoreScp) -> set[tuple[str, str]]:
            found = [dcmread(path) for path in scp.received()]
            return {(str(each.StudyInstanceUID), str(each.Modality)) for each in found}

        uids = {title: str(images[0].StudyInstanceUID) for title, (_, images) in studies.items()}
        assert arrived(north) == {(uids["HIPS_NORTH"], "SEG"), (uids["HIPS_NORTH"], "SR")}
        assert arrived(south) == {(uids["HIPS_SOUTH"], "SR")}


# --- processes ------------------------------------------------------------------------------


@steps.sqlite_only
@pytest.mark.parametrize("process", ("listen", "work", "beat", "serve", "up"))
def test_a_broken_file_stops_a_process_at_its_start(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: str
) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('[[rule]]\nname = "hips"\norientaton = "coronal"\n', "utf-8")
    monkeypatch.setenv("HIPSCORE_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("HIPSCORE_DATABASE_URL", settings.database)
    monkeypatch.setenv("HIPSCORE_BROKER_URL", settings.broker)
    monkeypatch.setenv("HIPSCORE_RULES", str(path))
    done = CliRunner().invoke(group, [process])
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith(
        f"Error: {path}: rule 'hips': orientaton: unknown key; did you mean orientation?"
    )
