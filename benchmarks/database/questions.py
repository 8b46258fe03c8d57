"""What is asked of the database: each function of the store that has to stay fast."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.database.growth import ARTIFACTS, DESTINATIONS
from benchmarks.pages.filling import result
from hipscore.lifecycle import JobState
from hipscore.store import (
    account,
    clock,
    commitment,
    deliveries,
    explaining,
    forgetting,
    intake,
    jobs,
    ledger,
    outbox,
    procedures,
    queries,
    retention,
    tallies,
    worklist,
)
from hipscore.store import engine as database
from hipscore.store.worklist import Wanted
from hipscore.worker.reaping import RECENT

LEASE = timedelta(minutes=3)
QUIET = timedelta(seconds=30)
REAP_BATCH = 100

#: what is done in a session; before it, what is not measured
Work = Callable[[Session], Callable[[], Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One line of the table. ``prepare`` returns what is measured."""

    name: str
    maker: sessionmaker[Session]
    prepare: Work
    limit_ms: float | None = 20.0


def questions(engine: Engine, studies: int, made: random.Random) -> Iterator[Question]:
    """Everything, in the order of the table."""
    readers, writers = database.readers(engine), database.sessions(engine)

    def whole() -> int:
        """One of the studies that have all their images."""
        return 20 * made.randint(1, studies // 20 - 25)

    def uid() -> str:
        return f"2.25.1{whole():09d}"

    def read(name: str, ask: Callable[[Session], Any], limit_ms: float | None = 20.0) -> Question:
        return Question(
            name=name,
            maker=readers,
            prepare=lambda session: lambda: ask(session),
            limit_ms=limit_ms,
        )

    yield read(
        "score of a study (`/studies/{uid}/score`)",
        lambda session: queries.latest_job_of_study(uid(), session=session),
        5.0,
    )
    for name, ask in _pages(studies, made).items():
        yield read(f"worklist: {name}", ask)
    yield read("ledger of a study", lambda session: ledger.of_study(uid(), session=session))
    yield read("`why`: study", lambda session: account.find(uid(), session=session))
    yield read("`why`: unknown UID", lambda session: account.find("1.2.3.4", session=session))
    yield read("counts (`/metrics`)", lambda session: queries.counts(session=session), 50.0)
    yield read("queue page", _queue, 50.0)
    yield from _reaping(writers)
    yield read("unexplained studies of a week", _unexplained, None)
    yield read("purge: images to go", _spare_images, None)
    yield read("purge: results to go", _spare_results, None)
    yield read("purge: rows to go (100)", _spare_rows, None)
    yield from _writing(writers, studies)


def _pages(studies: int, made: random.Random) -> dict[str, Callable[[Session], Any]]:
    now = datetime.now(UTC)

    def page(wanted: Callable[[], Wanted], **how: Any) -> Callable[[Session], Any]:
        return lambda session: worklist.page(wanted(), session=session, **how)

    def day() -> str:
        return (now - timedelta(days=made.randint(40, 700))).strftime("%Y%m%d")

    def on(date: str) -> Wanted:
        return Wanted(study_from=date, study_to=date)

    def some_score() -> Wanted:
        low = made.uniform(1, 20)
        return Wanted(min_score=low, max_score=low + 0.5)

    deep = studies // 3
    return {
        "newest": page(Wanted),
        "newest, a deep page": page(Wanted, after=deep),
        "highest": page(Wanted, highest=True),
        "highest, a deep page": page(Wanted, highest=True, below=6.5, after=deep),
        "highest, those without score": page(Wanted, highest=True, after=deep),
        "scored": page(lambda: Wanted(status="scored")),
        "scored, a deep page": page(lambda: Wanted(status="scored"), after=deep),
        "not scorable": page(lambda: Wanted(status="not_scorable")),
        "failed": page(lambda: Wanted(status="failed")),
        "withdrawn": page(lambda: Wanted(status="failed", withdrawn=True)),
        "queued": page(lambda: Wanted(status="queued")),
        "flagged": page(lambda: Wanted(priority=True)),
        "flagged, highest": page(lambda: Wanted(priority=True), highest=True),
        "score in a range": page(some_score),
        "score in a range, highest": page(some_score, highest=True),
        "one day": page(lambda: on(day())),
        "one day, highest": page(lambda: on(day()), highest=True),
        "until a day": page(lambda: Wanted(study_to=day())),
        "until a day, highest": page(lambda: Wanted(study_to=day()), highest=True),
        "scored on one day": page(
            lambda: Wanted(status="scored", study_from=(one := day()), study_to=one)
        ),
        "last week": page(lambda: Wanted(since=now - timedelta(days=7))),
        "last week, highest": page(lambda: Wanted(since=now - timedelta(days=7)), highest=True),
        "accession number": page(lambda: Wanted(number=f"A{made.randint(1, studies):09d}")),
        "study UID": page(lambda: Wanted(number=f"2.25.1{made.randint(1, studies):09d}")),
        "Patient ID": page(lambda: Wanted(patient_id=f"P{made.randint(0, 39_999):07d}")),
        "name, 6 letters": page(lambda: Wanted(patient_name="Smith0")),
        "name, rare": page(lambda: Wanted(patient_name=f"Doe{made.randrange(16**4):04x}")),
    }


def _queue(session: Session) -> None:
    """As ``hipscore.api.pages.queue`` reads it."""
    queries.counts(session=session)
    outbox.undelivered(limit=101, session=session)
    for state in (JobState.FAILED, JobState.ANALYSING, JobState.QUEUED):
        queries.jobs(state=state, limit=100, session=session)


def _reaping(writers: sessionmaker[Session]) -> Iterator[Question]:
    """Every statement of a reap that finds nothing to move."""
    steps: dict[str, Callable[[Session, datetime], Any]] = {
        "clock": lambda session, now: clock.rewind(
            now,
            lease_s=LEASE.total_seconds(),
            commitment_s=3600.0,
            went_back=False,
            session=session,
        ),
        "leases of jobs": lambda session, now: jobs.expire_leases(
            now=now, max_attempts=5, session=session
        ),
        "leases of deliveries": lambda session, now: deliveries.expire_leases(
            now=now, max_attempts=60, session=session
        ),
        "quiet series": lambda session, now: intake.quiet(
            before=now - QUIET, limit=REAP_BATCH, session=session
        ),
        "orders": lambda session, _: procedures.waiting(limit=REAP_BATCH, session=session),
        "unexplained studies": lambda session, now: explaining.unexplained(
            before=now - QUIET, horizon=RECENT, limit=REAP_BATCH, session=session
        ),
        "destinations that are asked": lambda session, _: commitment.destinations(session=session),
        "due": _due,
        "tallies": lambda session, _: tallies.fold(session=session),
    }

    def reap(session: Session, *names: str) -> None:
        now = datetime.now(UTC)
        for name in names:
            steps[name](session, now)

    def asked(*names: str) -> Work:
        return lambda session: lambda: reap(session, *names)

    yield Question(name="reap: all of it", maker=writers, prepare=asked(*steps))
    for name in steps:
        yield Question(name=f"reap: {name}", maker=writers, prepare=asked(name), limit_ms=None)


def _due(session: Session, now: datetime) -> None:
    before = now - timedelta(seconds=60)
    jobs.due(now, enqueued_before=before, limit=REAP_BATCH, session=session)
    deliveries.due(now, enqueued_before=before, limit=REAP_BATCH, session=session)
    commitment.due(now, enqueued_before=before, limit=REAP_BATCH, session=session)


def _unexplained(session: Session) -> None:
    """What the reaper asks every ten minutes; in between it looks at the last hour alone."""
    before = datetime.now(UTC) - QUIET
    explaining.unexplained(before=before, limit=REAP_BATCH, session=session)


def _spare_images(session: Session) -> None:
    before = datetime.now(UTC) - timedelta(days=30)
    retention.spare_images(before=before, session=session)


def _spare_results(session: Session) -> None:
    before = datetime.now(UTC) - timedelta(days=365)
    retention.spare_results(before=before, session=session)


def _spare_rows(session: Session) -> None:
    before = datetime.now(UTC) - timedelta(days=700)
    forgetting.spare_rows(before=before, limit=100, session=session)


def _ignore(_: object) -> None:
    """What is returned is not looked at."""


def _writing(writers: sessionmaker[Session], studies: int) -> Iterator[Question]:
    """The moves of an analysis; each is rolled back."""
    waits = iter(range(10**9))

    def waiting() -> int:
        return studies - next(waits) % 20

    def claim(session: Session, job_id: int) -> None:
        now = datetime.now(UTC)
        if not jobs.claim(job_id, lease="a", lease_until=now + LEASE, now=now, session=session):
            raise SystemExit(f"job {job_id} does not wait; fill the database anew")
        session.flush()

    def claiming(session: Session) -> Callable[[], None]:
        return lambda: claim(session, waiting())

    def finishing(session: Session) -> Callable[[], None]:
        job_id = waiting()
        claim(session, job_id)

        def finish() -> None:
            jobs.finish(
                job_id,
                lease="a",
                state=JobState.ANALYSED,
                result=result(),
                artifacts=[artifact(f"{job_id}") for artifact in ARTIFACTS],
                destinations=DESTINATIONS,
                timings={"read": 0.1, "segment": 1.2},
                now=datetime.now(UTC),
                session=session,
            )
            session.flush()

        return finish

    def forgetting_one(session: Session) -> Callable[[], None]:
        before = datetime.now(UTC) - timedelta(days=700)
        lots = forgetting.spare_rows(before=before, limit=300, session=session)
        whole = [lot for lot in lots if lot.series_id % 20 == 0]
        lot = whole[next(waits) % len(whole)]
        now = datetime.now(UTC)
        how: dict[str, Any] = {"before": before, "why": "age", "now": now}
        return lambda: _ignore(forgetting.forget(lot, session=session, **how))

    yield Question(
        name="deletion of all rows of a study", maker=writers, prepare=forgetting_one, limit_ms=None
    )
    yield Question(name="claim of a job", maker=writers, prepare=claiming)
    yield Question(
        name="finish of a job (4 artifacts, 4 deliveries)",
        maker=writers,
        prepare=finishing,
        limit_ms=50.0,
    )
