"""Steps the store's tests are told in: images arrive, a job is opened, claimed, finished."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hipscore.domain import ArtifactKind, ReceivedInstance
from hipscore.lifecycle import JobState
from hipscore.store import intake, jobs, recording
from hipscore.store.tables import Event, Job

NOW = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)
STUDY = "1.2.826.0.1.1"
SERIES = "1.2.826.0.1.1.7"
PACS = "PACS@10.0.0.5:104"
ARCHIVE = "ARCHIVE@10.0.0.6:11112"
BUNDLE = {"bundle_id": "hips", "bundle_version": "1.0", "bundle_sha256": "b" * 64}


def later(seconds: float) -> datetime:
    """NOW and some seconds."""
    return NOW + timedelta(seconds=seconds)


def image(
    number: int, *, series: str = SERIES, study: str = STUDY, content: str = "", **more: Any
) -> ReceivedInstance:
    """Image ``number`` of a coronal series; other ``content`` gives it another digest."""
    uid = f"{series}.{number}"
    described: dict[str, Any] = {
        "instance_number": number,
        "images_in_acquisition": 20,
        "position_mm": (-200.0, -60.0 + 4.4 * number, 150.0),
        "orientation": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
        "image_type": ("ORIGINAL", "PRIMARY", "M"),
    }
    return ReceivedInstance(
        study_instance_uid=study,
        series_instance_uid=series,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
        sop_instance_uid=uid,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        sha256=hashlib.sha256((uid + content).encode()).hexdigest(),
        size=1000 + number,
        **{**described, **more},
    )


def receive(
    instance: ReceivedInstance,
    *,
    session: Session,
    association_id: str = "association-1",
    now: datetime = NOW,
) -> recording.Recorded:
    """The image arrives from the scanner."""
    return recording.record(arrival(instance, association_id), now=now, session=session)


def arrival(instance: ReceivedInstance, association_id: str = "association-1") -> recording.Arrival:
    """The image as the listener hands it over."""
    return recording.Arrival(
        instance=instance,
        spool_key=f"{instance.sha256[:2]}/{instance.sha256[2:]}",
        calling_aet="SCANNER",
        called_aet="HIPSCORE",
        peer="10.0.0.9",
        association_id=association_id,
    )


def open_job(series_id: int, *, session: Session, now: datetime = NOW) -> Job:
    """The open series is closed and matched, and gets its job."""
    assert intake.close(series_id, "quiet_period", now=now, session=session)
    assert intake.match(series_id, matched=True, rule="any", now=now, session=session)
    return intake.open_job(series_id, **BUNDLE, now=now, session=session)


def a_job(*, session: Session, series: str = SERIES, study: str = STUDY, images: int = 3) -> Job:
    """A QUEUED job for a new series."""
    for number in range(images):
        recorded = receive(image(number, series=series, study=study), session=session)
    return open_job(recorded.series_id, session=session)


def claim(
    job_id: int, *, session: Session, lease: str = "lease-1", now: datetime = NOW
) -> Job | None:
    """A worker takes the job for ten minutes."""
    until = now + timedelta(minutes=10)
    return jobs.claim(job_id, lease=lease, lease_until=until, now=now, session=session)


def artifact(kind: ArtifactKind, job_id: int = 1) -> jobs.StoredArtifact:
    """A stored artifact of each kind; SEG and SR are DICOM objects."""
    digest = hashlib.sha256(f"{kind}{job_id}".encode()).hexdigest()
    dicom = {
        ArtifactKind.SEG: "1.2.840.10008.5.1.4.1.1.66.4",
        ArtifactKind.SR: "1.2.840.10008.5.1.4.1.1.88.34",
    }
    return jobs.StoredArtifact(
        kind=kind,
        media_type="application/dicom" if kind in dicom else "image/png",
        spool_key=f"{digest[:2]}/{digest[2:]}",
        sha256=digest,
        size=1234,
        sop_class_uid=dicom.get(kind),
        sop_instance_uid=f"2.25.{job_id}{kind.value.encode().hex()}" if kind in dicom else None,
    )


ALL_ARTIFACTS = (ArtifactKind.SEG, ArtifactKind.SR, ArtifactKind.OVERLAY)


def finish(
    job_id: int,
    *,
    session: Session,
    lease: str = "lease-1",
    reason: str | None = None,
    kinds: tuple[ArtifactKind, ...] = ALL_ARTIFACTS,
    destinations: tuple[str, ...] = (PACS,),
    now: datetime = NOW,
) -> list[int]:
    """The worker hands in a score, or the reason why there is none."""
    said = None if reason is None else {"code": reason, "text": "because"}
    return jobs.finish(
        job_id,
        lease=lease,
        state=JobState.ANALYSED if reason is None else JobState.NOT_SCORABLE,
        result={"unet_score": 3.21 if reason is None else None, "reason": said},
        artifacts=[artifact(kind, job_id) for kind in kinds],
        destinations=destinations,
        timings={"segment": 1.5},
        now=now,
        session=session,
    )


def a_scored_job(
    *, session: Session, series: str = SERIES, study: str = STUDY, **how: Any
) -> tuple[int, list[int]]:
    """Ids of an ANALYSED (or NOT_SCORABLE) job and of its deliveries."""
    job = a_job(session=session, series=series, study=study)
    assert claim(job.id, session=session)
    return job.id, finish(job.id, session=session, **how)


def rows(kind: type[Any], *, session: Session) -> int:
    """How many rows a table has."""
    return session.scalar(select(func.count()).select_from(kind)) or 0


def last_event(*, session: Session) -> Event:
    """The newest line of the ledger."""
    return session.scalars(select(Event).order_by(Event.id.desc()).limit(1)).one()


def moves(events: Any) -> list[str]:
    """The lines of the ledger in short: ``what FROM>TO``."""
    return [f"{e.what} {e.from_state or ''}>{e.to_state or ''}" for e in events]


def at_once(works: list[Callable[[], object]]) -> None:
    """Run all of them in threads that start together; none may raise."""
    together = threading.Barrier(len(works))
    errors: list[BaseException] = []

    def start(work: Callable[[], object]) -> None:
        together.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - reported by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=start, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
