"""What the pictures of a study are made from: the images of a job and its segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from hipscore.domain import ArtifactKind
from hipscore.store.intake import StoredBytes
from hipscore.store.tables import ArtifactRow, Instance, Job, JobInstance, Series, Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the images of a job and its SEG lie.

    ``purged_at`` is when the last of the images went; None as long as all are here. ``seg``
    is None where there is none, or not any more. ``withdrawn_at`` is when the result was
    withdrawn: what was segmented is part of it.
    """

    job_id: int
    job_key: str
    images: tuple[StoredBytes, ...]
    purged_at: datetime | None
    seg: StoredBytes | None
    withdrawn_at: datetime | None


def sources(
    study_instance_uid: str, job_id: int | None = None, *, session: Session
) -> Sources | None:
    """Those of a job of the study, by default of the one that speaks for it; None without."""
    job = session.get(Job, _speaking(study_instance_uid, session) if job_id is None else job_id)
    if job is None:
        return None
    series = session.get_one(Series, job.series_id)
    if series.study_instance_uid != study_instance_uid:
        return None
    images = session.execute(
        select(Instance.spool_key, Instance.sha256, Instance.purged_at)
        .join(JobInstance, JobInstance.instance_id == Instance.id)
        .where(JobInstance.job_id == job.id)
        .order_by(Instance.id)
    ).all()
    made = select(ArtifactRow.spool_key, ArtifactRow.sha256).where(
        ArtifactRow.job_id == job.id,
        ArtifactRow.kind == ArtifactKind.SEG,
        ArtifactRow.purged_at.is_(None),
    )
    seg = session.execute(made).first()
    return Sources(
        job_id=job.id,
        job_key=job.key,
        images=tuple(StoredBytes(each.spool_key, each.sha256) for each in images),
        purged_at=max((each.purged_at for each in images if each.purged_at), default=None),
        seg=None if seg is None else StoredBytes(*seg),
        withdrawn_at=job.withdrawn_at,
    )


def _speaking(study_instance_uid: str, session: Session) -> int:
    query = select(Study.job_id).where(Study.study_instance_uid == study_instance_uid)
    return session.scalar(query) or 0


def in_order(job_id: int, *, session: Session) -> list[str]:
    """SOP Instance UIDs of the images of a job, anterior to posterior, as the analysis sorts them.

    Empty where positions are not known without the images (multi-frame, damaged headers).
    """
    rows = session.execute(
        select(Instance.sop_instance_uid, Instance.position_mm, Instance.orientation)
        .join(JobInstance, JobInstance.instance_id == Instance.id)
        .where(JobInstance.job_id == job_id)
        .order_by(Instance.id)
    ).all()
    if len(rows) < 2 or any(row.position_mm is None or row.orientation is None for row in rows):
        return []
    x, y, z = _normal([float(each) for each in rows[0].orientation])
    depth = {
        row.sop_instance_uid: x * row.position_mm[0]
        + y * row.position_mm[1]
        + z * row.position_mm[2]
        for row in rows
    }
    return sorted(depth, key=lambda uid: depth[uid])


def _normal(cosines: list[float]) -> tuple[float, float, float]:
    """Normal of the slice plane, to the patient's back (LPS: +y), as :mod:`hipscore.series`."""
    a, b, c, d, e, f = cosines
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    return normal if normal[1] >= 0 else (-normal[0], -normal[1], -normal[2])
