"""Ten mishaps, each made to happen: ``hipscore why`` names the cause, on one screen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from hipscore.cli.why import SCREEN, WIDTH, screen
from hipscore.lifecycle import CloseReason, JobState, backoff
from hipscore.settings import Settings
from hipscore.store import (
    account,
    commitment,
    deliveries,
    engine,
    intake,
    jobs,
    ledger,
    retention,
)
from hipscore.store.tables import Event, Instance, Job
from hipscore.store.why import Verdict, explain
from tests import servers
from tests.integration import shell_steps as shell
from tests.integration.store_steps import (
    ARCHIVE,
    NOW,
    PACS,
    SERIES,
    STUDY,
    a_job,
    a_scored_job,
    claim,
    finish,
    image,
    later,
    open_job,
    receive,
)

Maker = sessionmaker[Session]
DOWN = f"{PACS} cannot be reached"


@dataclass(frozen=True)
class Told:
    """What is printed, and what it was made of."""

    verdicts: list[Verdict]
    lines: list[str]
    about: str | None

    @property
    def text(self) -> str:
        return "\n".join(each for verdict in self.verdicts for each in verdict.sentences)

    @property
    def next(self) -> str:
        return "\n".join(each for verdict in self.verdicts for each in verdict.what_next)


def tell(maker: Maker, *, now: datetime, uid: str = SERIES, everything: bool = False) -> Told:
    """What ``hipscore why`` says at that time; always on one screen."""
    with engine.readers(maker.kw["bind"])() as session:
        found = account.find(uid, session=session)
        around = account.surroundings(quiet_seconds=30, now=now, session=session)
    verdicts = [explain(each, around) for each in found.accounts]
    lines = screen(found, verdicts, everything=everything)
    assert everything or len(lines) <= SCREEN
    assert all(len(line) <= WIDTH for line in lines)
    return Told(verdicts, lines, found.about)


def send(maker: Maker, delivery_id: int, at: datetime) -> None:
    """A worker takes the delivery."""
    with maker.begin() as session:
        until = at + timedelta(minutes=3)
        assert deliveries.claim(
            delivery_id, lease="courier", lease_until=until, now=at, session=session
        )


def put_off(
    maker: Maker, ids: list[int], error: str, *, times: int, status: int | None = None
) -> datetime:
    """The deliveries are tried so often; when the last try was."""
    at = NOW
    for attempt in range(1, times + 1):
        wait = timedelta(seconds=backoff(attempt))
        for delivery_id in ids:
            send(maker, delivery_id, at)
            with maker.begin() as session:
                deliveries.postpone(
                    delivery_id,
                    lease="courier",
                    error=error,
                    status=status,
                    next_attempt_at=at + wait,
                    now=at,
                    session=session,
                )
        last, at = at, at + wait
    return last


def arrive(maker: Maker, ids: list[int], *, at: datetime, commit: bool = False) -> None:
    for delivery_id in ids:
        send(maker, delivery_id, at)
        with maker.begin() as session:
            deliveries.sent(
                delivery_id, lease="courier", status=0, commit=commit, now=at, session=session
            )


def ask(maker: Maker, at: datetime) -> str:
    """The PACS is asked for storage commitment; the transaction."""
    with maker.begin() as session:
        asked = commitment.open_transaction(
            PACS, held_until=at + timedelta(minutes=3), now=at, session=session
        )
        assert asked is not None
        commitment.accepted(asked.uid, wait_s=3600, now=at, session=session)
    return asked.uid


def scored(maker: Maker, **how: Any) -> list[int]:
    with maker.begin() as session:
        return a_scored_job(session=session, **how)[1]


def killed(maker: Maker, job_id: int, times: int, *, allowed: int = 5) -> datetime:
    """So many workers die over the job; when the last was noticed."""
    at = NOW
    for attempt in range(times):
        with maker.begin() as session:
            assert claim(job_id, session=session, lease=f"worker-{attempt}", now=at)
        at += timedelta(minutes=11)
        with maker.begin() as session:
            jobs.expire_leases(now=at, max_attempts=allowed, session=session)
    return at


# --- when nothing is the matter ------------------------------------------------------------


def test_all_is_well(maker: Maker) -> None:
    ids = scored(maker)
    arrive(maker, ids, at=later(5), commit=True)
    uid = ask(maker, later(6))
    with maker.begin() as session:
        made = [f"2.25.1{kind.encode().hex()}" for kind in ("seg", "sr")]
        commitment.report(
            uid,
            succeeded=made,
            failed={},
            by=PACS.__eq__,
            max_attempts=60,
            now=later(7),
            session=session,
        )
    told = tell(maker, now=later(60))
    assert told.verdicts[0].sentences[0] == f"scored 3.21; SEG and SR COMMITTED at {PACS} 09:30"
    assert told.next == "nothing to do"


def test_an_open_series_says_when_it_closes(maker: Maker) -> None:
    with maker.begin() as session:
        for number in range(12):
            receive(image(number), session=session)
    told = tell(maker, now=later(14))
    assert told.text == "open: 12 images, last 14 s ago; closes after 30 s of silence"
    told = tell(maker, now=later(600))
    assert "should have been closed after 30 s of silence" in told.text
    assert "hipscore beat" in told.next


def test_a_job_that_nobody_takes_says_what_does_not_run(maker: Maker) -> None:
    with maker.begin() as session:
        job_id = a_job(session=session).id
    assert tell(maker, now=later(5)).verdicts[0].sentences[0] == "queued since 09:30"
    assert "nothing reached the broker" in tell(maker, now=later(90)).text
    assert "is the broker up" in tell(maker, now=later(90)).next
    with maker.begin() as session:
        jobs.enqueued([job_id], now=later(60), session=session)
    told = tell(maker, now=later(120))
    said = "queued since 09:30, announced at 09:31, and no worker takes it"
    assert told.verdicts[0].sentences[0] == said
    assert 'is "hipscore work"' in told.next
    with maker.begin() as session:
        other = a_job(session=session, series="1.2.9", study="1.2.8")
        assert claim(other.id, session=session)
    assert (
        "the workers are busy with 1 analysis, 0 analyses more" in tell(maker, now=later(120)).text
    )


def test_nothing_is_known_of_nonsense(maker: Maker) -> None:
    assert tell(maker, now=NOW, uid="1.2.3.4").verdicts == []


def test_every_uid_leads_to_the_series(maker: Maker) -> None:
    scored(maker)
    report = f"2.25.1{b'sr'.hex()}"
    for uid in (STUDY, SERIES, f"{SERIES}.1", report):
        assert tell(maker, now=NOW, uid=uid).verdicts[0].series_instance_uid == SERIES
    assert tell(maker, now=NOW, uid=f"{SERIES}.1").about == (
        f"image {SERIES}.1: received 2026-03-14 09:30:00 and kept"
    )
    assert tell(maker, now=NOW, uid=report).about == f"SR {report}: made by job 1"


# --- the ten -------------------------------------------------------------------------------


def test_1_the_pacs_is_down(maker: Maker) -> None:
    ids = scored(maker)
    last = put_off(maker, ids, DOWN, times=7)
    told = tell(maker, now=last + timedelta(seconds=30))
    assert f"scored 3.21; SEG and SR wait: {DOWN}, since 09:30, 7 tries, next at 09:51" in told.text
    assert f"check that {PACS} runs and its host and port are right" in told.next
    assert sum("×7" in line for line in told.lines) == 2  # SEG and SR


def test_2_the_pacs_refuses_the_object(maker: Maker) -> None:
    first, second = scored(maker)
    arrive(maker, [second], at=later(5))
    send(maker, first, later(5))
    error = f"{PACS} refused with 0x0122 (SOP class not supported)"
    with maker.begin() as session:
        deliveries.refuse(
            first, lease="courier", error=error, status=0x0122, now=later(6), session=session
        )
    told = tell(maker, now=later(60))
    assert told.verdicts[0].sentences[:2] == (
        f"scored 3.21; SEG REFUSED: {error}",
        f"SR SENT to {PACS} 09:30; storage commitment is not asked for",
    )
    assert told.next == f"let {PACS} accept it, then: hipscore retry --delivery {first}"


def test_3_the_pacs_is_out_of_resources(maker: Maker) -> None:
    ids = scored(maker, destinations=(PACS, ARCHIVE))
    error = f"{PACS} cannot take it now, 0xA700 (out of resources)"
    last = put_off(maker, [ids[0]], error, times=2, status=0xA700)
    arrive(maker, ids[1:], at=later(2))
    told = tell(maker, now=last + timedelta(seconds=1))
    assert f"SEG waits: {error}, since 09:30, 2 tries, next at 09:30" in told.text
    assert f"SEG and SR SENT to {ARCHIVE}" in told.text


def test_4_a_worker_is_killed_in_the_analysis(maker: Maker) -> None:
    with maker.begin() as session:
        job_id = a_job(session=session).id
    at = killed(maker, job_id, 1)
    told = tell(maker, now=at + timedelta(seconds=5))
    assert "the worker that held it died (attempt 1); it waits for another" in told.text
    with maker.begin() as session:
        assert claim(job_id, session=session, lease="second", now=at)
    told = tell(maker, now=at + timedelta(seconds=5))
    assert (
        "the worker that held it died (attempt 1); it was taken back at 09:41 and is analysed by "
        "another (attempt 2)" in told.text
    )
    with maker.begin() as session:
        finish(job_id, session=session, lease="second", now=at)
    told = tell(maker, now=at + timedelta(seconds=5))
    assert "once a worker that held it died, the last at 09:41; another finished it" in told.text


def test_5_five_workers_are_killed(maker: Maker) -> None:
    with maker.begin() as session:
        job_id = a_job(session=session).id
    at = killed(maker, job_id, 5)
    told = tell(maker, now=at)
    assert "its worker died 5 times in the analysis; given up before it kills more" in told.text
    assert f"hipscore retry {job_id}" in told.next


def test_6_a_slice_is_missing(maker: Maker) -> None:
    with maker.begin() as session:
        job = a_job(session=session)
        assert claim(job.id, session=session)
        text = "The stack has holes: 1 slice is missing."
        result = {"unet_score": None, "reason": {"code": "missing_slices", "text": text}}
        jobs.finish(
            job.id,
            lease="lease-1",
            state=JobState.NOT_SCORABLE,
            result=result,
            artifacts=[],
            destinations=(),
            timings={},
            now=NOW,
            session=session,
        )
    told = tell(maker, now=later(5))
    assert told.text.startswith(
        "not scorable: missing_slices (The stack has holes: 1 slice is missing); sent nowhere"
    )


def test_7_a_scout_is_ignored(maker: Maker) -> None:
    with maker.begin() as session:
        scout = receive(image(1, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")), session=session)
        intake.close(scout.series_id, "quiet_period", now=later(40), session=session)
        intake.match(
            scout.series_id, matched=False, rule="localizer", now=later(40), session=session
        )
    told = tell(maker, now=later(60))
    assert told.text.startswith("ignored: nothing but scouts (localizer), 1 image; it is not")


@pytest.mark.parametrize("noticed", (True, False))
def test_8_the_sender_breaks_off_and_the_rest_comes_late(maker: Maker, *, noticed: bool) -> None:
    with maker.begin() as session:
        for number in range(11):
            series_id = receive(image(number), session=session).series_id
        if noticed:
            ledger.append(ledger.Subject(series_id=series_id), "abort", now=NOW, session=session)
    if noticed:
        told = tell(maker, now=later(5))
        assert "the sender broke off at 09:30, in the middle of the series" in told.text
    with maker.begin() as session:
        job = open_job(series_id, session=session, now=later(31))
        assert claim(job.id, session=session, now=later(31))
        finish(job.id, session=session, now=later(33))
    with maker.begin() as session:
        receive(image(11), session=session, association_id="association-2", now=later(600))
        intake.close(series_id, CloseReason.EXPECTED_COUNT, now=later(601), session=session)
        intake.match(series_id, matched=True, rule="any", now=later(601), session=session)
        second = intake.open_job(
            series_id,
            bundle_id="hips",
            bundle_version="1.0",
            bundle_sha256="b" * 64,
            now=later(601),
            session=session,
        )
        assert claim(second.id, session=session, now=later(601))
        finish(second.id, session=session, now=later(603))
    told = tell(maker, now=later(610))
    cause = (
        "the sender broke off at 09:30"
        if noticed
        else "there was no proof that the sender was done"
    )
    assert f"at first closed at 09:30 by silence, with 11 images: {cause}" in told.text
    assert "an image came late, the last time at 09:40: the series was opened again" in told.text
    assert f"job {second.id} supersedes job {job.id} of the same series" in told.text
    assert f"the report of the earlier job {job.id} is still PENDING" in told.text


def test_9_the_same_uid_comes_with_other_bytes(maker: Maker) -> None:
    scored(maker)
    with maker.begin() as session:
        for _ in range(40):
            receive(image(1, content="other"), session=session, now=later(60))
    told = tell(maker, now=later(70))
    assert (
        "conflict: 1 image came again with other content under the same UID; the first is kept"
        in told.text
    )
    assert any("×40" in line for line in told.lines)
    assert len(tell(maker, now=later(70), everything=True).lines) > 40


def test_10_the_pacs_declines_the_commitment_or_never_reports(maker: Maker) -> None:
    ids = scored(maker)
    arrive(maker, ids, at=later(5), commit=True)
    uid = ask(maker, later(6))
    told = tell(maker, now=later(60))
    assert f"SEG and SR SENT to {PACS} 09:30; commitment asked for once: no report yet" in told.text
    assert "asked again at 10:30" in told.next
    with maker.begin() as session:
        commitment.report(
            uid,
            succeeded=[f"2.25.1{b'seg'.hex()}"],
            failed={f"2.25.1{b'sr'.hex()}": (0x0112, "no such object instance")},
            by=PACS.__eq__,
            max_attempts=60,
            now=later(100),
            session=session,
        )
    told = tell(maker, now=later(101))
    assert (
        f"SR waits: {PACS} does not keep it: no such object instance (0x0112), since 09:31, 1 try, "
        "next at 09:31" in told.text
    )
    assert f"SEG COMMITTED at {PACS} 09:31" in told.text


def test_11_an_image_is_in_two_studies(maker: Maker) -> None:
    scored(maker)
    with maker.begin() as session:
        receive(image(99, study="1.2.826.0.9"), session=session, now=later(60))
    told = tell(maker, now=later(70))
    expected = (
        "1 image of this series refused (0xC211): the sender says they belong to study "
        f"1.2.826.0.9, the series is known in study {STUDY}"
    )
    assert expected in told.text
    assert "correct the Study Instance UID" in told.next
    for uid in (f"{SERIES}.99", "1.2.826.0.9"):  # that it refused is all that is known of them
        told = tell(maker, now=later(70), uid=uid)
        assert told.about is not None
        assert told.about.startswith(f"image {SERIES}.99: refused 2026-03-14 09:31:00; it says")
        assert expected in told.text


def test_12_the_images_were_purged(maker: Maker) -> None:
    ids = scored(maker)
    arrive(maker, ids, at=later(5))
    at = NOW + timedelta(days=31)
    with maker.begin() as session:
        (lot,) = retention.spare_images(before=at, session=session)
        retention.mark(lot, before=at, why="age", now=at, session=session)
    told = tell(maker, now=at)
    assert "3 of 3 images purged on 2026-04-14; rows and results stay" in told.text
    with maker.begin() as session:
        late = receive(image(3), session=session, now=at)
        job = open_job(late.series_id, session=session, now=at)
        assert claim(job.id, session=session, now=at)
        with pytest.raises(retention.ImagesPurged) as purged:
            retention.require_images(job.id, session=session)
        jobs.fail(
            job.id,
            lease="lease-1",
            error=str(purged.value),
            reason_code=retention.IMAGES_PURGED,
            now=at,
            session=session,
        )
    told = tell(maker, now=at)
    assert told.text.startswith(
        "failed: the images were purged on 2026-04-14 by the retention policy"
    )
    assert "send the whole series again" in told.next


# --- and what else may stand there ---------------------------------------------------------


def test_what_was_given_up_says_how_to_send_it_again(maker: Maker) -> None:
    ids = scored(maker)
    for delivery_id in ids:
        send(maker, delivery_id, later(5))
        with maker.begin() as session:
            deliveries.exhaust(
                delivery_id, lease="courier", error=DOWN, status=None, now=later(6), session=session
            )
    told = tell(maker, now=later(60))
    assert f"SEG and SR given up at 09:30 after 1 try: {DOWN}" in told.text
    assert f"hipscore retry --all-exhausted --destination {PACS}" in told.next


def test_a_defect_says_that_nothing_was_sent(maker: Maker) -> None:
    with maker.begin() as session:
        job = a_job(session=session)
        assert claim(job.id, session=session)
        jobs.fail(job.id, lease="lease-1", error="ValueError at x.py:7", now=NOW, session=session)
    told = tell(maker, now=later(5))
    assert "failed at 09:30 after 1 try: ValueError at x.py:7. Nothing was sent" in told.text
    assert f"hipscore retry {job.id}" in told.next


@pytest.mark.parametrize(
    ("lease_until", "sentence"),
    (
        (NOW, "its worker is silent since before 09:30 (attempt 1)"),
        (later(900), "is being analysed (attempt 1)"),
    ),
)
def test_an_analysis_under_way(maker: Maker, lease_until: datetime, sentence: str) -> None:
    with maker.begin() as session:
        job_id = a_job(session=session).id
        assert claim(job_id, session=session)
        session.execute(update(Job).where(Job.id == job_id).values(lease_until=lease_until))
    assert sentence in tell(maker, now=later(300)).text


def test_a_study_of_many_series_still_shows_some_of_the_ledger(maker: Maker) -> None:
    with maker.begin() as session:
        for number in range(6):
            a_scored_job(session=session, series=f"{SERIES}.{number}")
    with engine.readers(maker.kw["bind"])() as session:
        found = account.find(STUDY, session=session)
        around = account.surroundings(quiet_seconds=30, now=later(5), session=session)
    lines = screen(found, [explain(each, around) for each in found.accounts])
    assert sum(line.startswith("series ") for line in lines) == 6
    assert "more lines" in lines[-3]
    assert len(lines) < 40


def test_the_account_counts_images_and_what_was_purged(maker: Maker) -> None:
    scored(maker)
    with maker.begin() as session:
        session.execute(update(Instance).where(Instance.id == 1).values(purged_at=NOW))
    with engine.readers(maker.kw["bind"])() as session:
        (known,) = account.find(SERIES, session=session).accounts
    assert (known.images, known.purged, known.purged_at) == (3, 1, NOW)
    assert replace(known, purged=0).purged_at == NOW


@shell.sqlite_only
def test_the_listener_writes_down_that_a_sender_broke_off(
    settings: Settings, tmp_path: Path
) -> None:
    images = shell.images()[:5]
    with shell.listening(settings) as port:
        shell.storescu(port, shell.save(images, tmp_path / "scanner"), "--abort")
        servers.wait_until(
            lambda: any(row.what == "abort" for row in shell.rows(settings, Event)),
            what="the abort is in the ledger",
        )
    (line,) = (row for row in shell.rows(settings, Event) if row.what == "abort")
    assert line.detail == {"images": 5}
