"""The line of a study in ``studies``: kept true by whoever moves one of its jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session, aliased

from hipscore.lifecycle import JobState
from hipscore.store.tables import Job, Series, Study

#: which of several series speaks for the study: the first kind that there is
PREFERENCE = {
    JobState.ANALYSED: 0,
    JobState.QUEUED: 1,
    JobState.ANALYSING: 1,
    JobState.NOT_SCORABLE: 2,
    JobState.FAILED: 3,
}
#: the status of the result JSON for each state of a job
STATUS = {
    JobState.QUEUED: "queued",
    JobState.ANALYSING: "analysing",
    JobState.ANALYSED: "scored",
    JobState.NOT_SCORABLE: "not_scorable",
    JobState.FAILED: "failed",
}
#: reason of a result that an operator has withdrawn
WITHDRAWN = "withdrawn"


def rank(job: Job) -> tuple[int, int]:
    """Order of the jobs of a study, the one that speaks for it first."""
    return (len(PREFERENCE) if job.withdrawn_at else PREFERENCE[job.state], -job.id)


def refresh(series_id: int, *, now: datetime, session: Session) -> None:
    """Write down what speaks for the study of this series now."""
    # First the line, then its jobs: of two series that finish together, the second writes
    # what both have come to. (SQLite has only one writer.)
    line = (
        select(Study.id, Study.study_instance_uid)
        .join(Series, Series.study_instance_uid == Study.study_instance_uid)
        .where(Series.id == series_id)
        .with_for_update(key_share=True, of=Study)
    )
    found = session.execute(line).one_or_none()
    if found is None:
        return
    later = aliased(Job)
    current = (
        select(Job)
        .join(Series, Series.id == Job.series_id)
        .where(
            Series.study_instance_uid == found.study_instance_uid,
            ~exists().where(later.supersedes_id == Job.id),
        )
    )
    job = min(session.scalars(current), key=rank, default=None)
    session.execute(
        update(Study).where(Study.id == found.id).values(**_outcome(job), updated_at=now),
        execution_options={"synchronize_session": False},
    )


def _outcome(job: Job | None) -> dict[str, Any]:
    if job is None:
        return {
            "status": None,
            "reason_code": None,
            "job_id": None,
            "score": None,
            "score_right": None,
            "score_left": None,
            "priority": False,
            "priority_reason": "",
        }
    shown = job.state is JobState.ANALYSED and job.withdrawn_at is None
    result: dict[str, Any] = (job.result or {}) if shown else {}
    sides = {hip["side"]: hip["unet_score"] for hip in result.get("hips", [])}
    priority = result.get("priority") or {}
    return {
        "status": "failed" if job.withdrawn_at else STATUS[job.state],
        "reason_code": WITHDRAWN if job.withdrawn_at else job.reason_code,
        "job_id": job.id,
        "score": result.get("unet_score"),
        "score_right": sides.get("right"),
        "score_left": sides.get("left"),
        "priority": bool(priority.get("flag")),
        "priority_reason": str(priority.get("reason") or "")[:255],
    }
