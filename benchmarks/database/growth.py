"""How many rows and bytes an analysis adds: made by the store itself, then weighed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from benchmarks import tables
from benchmarks.pages.filling import IMAGES, result
from hipscore.domain import ArtifactKind, ReceivedInstance
from hipscore.lifecycle import JobState
from hipscore.store import commitment, deliveries, intake, jobs, recording
from hipscore.store import engine as database
from hipscore.store.tables import Base
from tests import servers

DESTINATIONS = ("PACS@10.0.0.5:104", "ARCHIVE@10.0.0.6:104")
#: enough for pages and index leaves to be filled as they are later
_ANALYSES = 100
_SR = "1.2.840.10008.5.1.4.1.1.88.34"
_SEG = "1.2.840.10008.5.1.4.1.1.66.4"
#: rows of these are not of analyses
_NOT_OURS = frozenset({"tallies", "removals", "access_keys", "access_sessions", "subscriptions"})


def _artifact(
    kind: ArtifactKind, sop_class: str | None, number: int = 0
) -> Callable[[str], jobs.StoredArtifact]:
    def made(seed: str) -> jobs.StoredArtifact:
        digest = hashlib.sha256(f"{seed} {kind} {number}".encode()).hexdigest()
        return jobs.StoredArtifact(
            kind=kind,
            number=number,
            media_type="application/dicom" if sop_class else "image/png",
            spool_key=f"{digest[:2]}/{digest[2:]}",
            sha256=digest,
            size=60_000,
            sop_class_uid=sop_class,
            sop_instance_uid=f"2.25.{int(digest[:30], 16)}" if sop_class else None,
        )

    return made


#: of each analysis
ARTIFACTS = (
    _artifact(ArtifactKind.SEG, _SEG),
    _artifact(ArtifactKind.SR, _SR),
    _artifact(ArtifactKind.SR_FALLBACK, _SR),
    _artifact(ArtifactKind.OVERLAY, None),
)


def table() -> str:
    """Rows and bytes (with indexes) that each analysis adds, by table, as Markdown."""
    with servers.postgres() as server, server.database() as url:
        database.upgrade(url)
        engine = database.connect(url)
        writers = database.sessions(engine)
        # an empty index has pages, too: with so few analyses they would weigh more than these
        empty = {name: size for name, _, size, _ in _weigh(engine)}
        for number in range(_ANALYSES):
            _analysis(number, writers)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        rows = [
            (name, rows / _ANALYSES, (size - empty[name]) / _ANALYSES)
            for name, rows, size, _ in _weigh(engine)
            if name not in _NOT_OURS and rows
        ]
        engine.dispose()
    total = ("in all", sum(row[1] for row in rows), sum(row[2] for row in rows))
    shown = [(name, f"{many:.0f}", f"{size:,.0f}") for name, many, size in [*rows, total]]
    heading = (
        f"Growth: rows and bytes with indexes of an analysis of {IMAGES} images, with "
        f"{len(ARTIFACTS)} artifacts, two of them sent to {len(DESTINATIONS)} destinations that "
        f"commit to them (mean of {_ANALYSES}, made by the functions of the store)."
    )
    return f"{heading}\n\n{tables.table(('table', 'rows', 'bytes'), shown)}"


def sizes(engine: Engine) -> str:
    """How large the tables of this database are, and their indexes, as Markdown."""
    rows = [
        (name, f"{rows:,}", f"{size / 2**20:,.0f}", f"{indexes / 2**20:,.0f}")
        for name, rows, size, indexes in _weigh(engine)
        if rows
    ]
    return tables.table(("table", "rows", "MiB in all", "MiB of indexes"), rows)


def _weigh(engine: Engine) -> list[tuple[str, int, int, int]]:
    """Rows (as the planner knows them), bytes in all, bytes of indexes; largest first."""
    query = text(
        "SELECT relname, reltuples::bigint, pg_total_relation_size(oid), pg_indexes_size(oid) "
        "FROM pg_class WHERE relkind = 'r' AND relname = ANY(:names)"
    )
    with engine.connect() as connection:
        found = connection.execute(query, {"names": list(Base.metadata.tables)}).all()
    rows = [(str(row[0]), int(row[1]), int(row[2]), int(row[3])) for row in found]
    return sorted(rows, key=lambda row: -row[2])


def _analysis(number: int, writers: sessionmaker[Session]) -> None:
    """One series from its first image to the last storage commitment, in small transactions."""
    now = datetime.now(UTC) + timedelta(seconds=number)
    study = f"2.25.{9 * 10**36 + number}"
    arrivals = [_arrival(study, at) for at in range(1, IMAGES + 1)]
    with writers.begin() as session:
        series_id = recording.record_all(arrivals, now=now, session=session)[0].series_id
    with writers.begin() as session:
        intake.close(series_id, "expected_count", now=now, session=session)
        intake.match(series_id, matched=True, rule="hip", now=now, session=session)
        job_id = intake.open_job(
            series_id,
            bundle_id="stir-unet",
            bundle_version="1.0",
            bundle_sha256="b" * 64,
            now=now,
            session=session,
        ).id
    until = now + timedelta(minutes=3)
    with writers.begin() as session:
        jobs.claim(job_id, lease="host/1/a", lease_until=until, now=now, session=session)
    with writers.begin() as session:
        sent = jobs.finish(
            job_id,
            lease="host/1/a",
            state=JobState.ANALYSED,
            result=result(),
            artifacts=[artifact(study) for artifact in ARTIFACTS],
            destinations=DESTINATIONS,
            timings={"read": 0.1, "segment": 1.2, "report": 0.2},
            now=now,
            session=session,
        )
    for delivery_id in sent:
        _deliver(delivery_id, now, until, writers)
    for destination in DESTINATIONS:
        _commit(destination, now, until, writers)


def _deliver(
    delivery_id: int, now: datetime, until: datetime, writers: sessionmaker[Session]
) -> None:
    with writers.begin() as session:
        deliveries.claim(delivery_id, lease="host/2/b", lease_until=until, now=now, session=session)
    with writers.begin() as session:
        deliveries.sent(
            delivery_id, lease="host/2/b", status=0, commit=True, now=now, session=session
        )


def _commit(
    destination: str, now: datetime, until: datetime, writers: sessionmaker[Session]
) -> None:
    with writers.begin() as session:
        asked = commitment.open_transaction(destination, held_until=until, now=now, session=session)
    if asked is None:
        return
    with writers.begin() as session:
        commitment.report(
            asked.uid,
            succeeded=[uid for _, uid in asked.objects],
            failed={},
            by=lambda reporter: reporter == destination,
            max_attempts=60,
            now=now,
            session=session,
        )


def _arrival(study: str, number: int) -> recording.Arrival:
    uid = f"{study}.7.{number}"
    digest = hashlib.sha256(uid.encode()).hexdigest()
    return recording.Arrival(
        instance=ReceivedInstance(
            study_instance_uid=study,
            series_instance_uid=f"{study}.7",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
            sop_instance_uid=uid,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            sha256=digest,
            size=295_000,
            instance_number=number,
            images_in_acquisition=IMAGES,
            position_mm=(-180.125, -60.5 + 4.4 * number, 180.25),
            orientation=(1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
            image_type=("ORIGINAL", "PRIMARY", "M"),
        ),
        spool_key=f"{digest[:2]}/{digest[2:]}",
        calling_aet="SCANNER",
        called_aet="HIPSCORE",
        peer="10.0.0.7",
        association_id=digest[:32],
    )
