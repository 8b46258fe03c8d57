"""From rows of the database to what the API answers. Reads nothing, changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from hipscore.api import models
from hipscore.domain import ArtifactKind, Side
from hipscore.lifecycle import JobState, SeriesState
from hipscore.store import queries, tables, why

_STATUS = {
    JobState.QUEUED: models.Status.QUEUED,
    JobState.ANALYSING: models.Status.ANALYSING,
    JobState.ANALYSED: models.Status.SCORED,
    JobState.NOT_SCORABLE: models.Status.NOT_SCORABLE,
    JobState.FAILED: models.Status.FAILED,
}
PENDING = {models.Status.QUEUED, models.Status.ANALYSING}
_WITHOUT_SCORE = {models.Status.NOT_SCORABLE, models.Status.FAILED}
_ARRIVING = {SeriesState.RECEIVING, SeriesState.COMPLETE}
OFFERED = (ArtifactKind.SEG, ArtifactKind.SR, ArtifactKind.OVERLAY)


def study_status(
    job: queries.JobDetail | None, series: Sequence[tables.Series]
) -> models.Status | None:
    """Where the score of a study is; None when every series of it was ignored.

    No score is not final while images arrive: the next series may be the STIR of the hips.
    """
    if job is not None:
        status = _STATUS[job.job.state]
        arriving = any(each.state in _ARRIVING for each in series)
        return models.Status.QUEUED if status in _WITHOUT_SCORE and arriving else status
    waiting = any(each.state is not SeriesState.IGNORED for each in series)
    return models.Status.QUEUED if waiting else None


def score(
    study_uid: str,
    job: queries.JobDetail | None,
    series: Sequence[tables.Series],
    *,
    root: str,
) -> models.Score | None:
    """Build the score of a study; None when every series of it was ignored.

    Parameters
    ----------
    study_uid
        Its Study Instance UID.
    job
        The job that speaks for it.
    series
        Its series, at least one.
    root
        Path the application is mounted at, for the paths of the artifacts.
    """
    status = study_status(job, series)
    if status is None:
        return None
    job = _of_status(job, status)
    if job is not None and job.job.result is not None:
        stored = {**job.job.result, "artifacts": _artifacts(study_uid, job, root)}
        return models.Score.model_validate(stored)
    awaited = next((each for each in reversed(series) if each.state in _ARRIVING), series[-1])
    return models.Score(
        study_instance_uid=study_uid,
        series_instance_uid=(job.series if job is not None else awaited).series_instance_uid,
        status=status,
        reason=None if job is None else _reason(job.job),
        unet_score=None,
        hips=[],
        model=None if job is None else _model(job.job),
        quality=[],
        created_at=None,
        supersedes=None,
        artifacts={},
    )


def study_line(summary: queries.StudySummary) -> models.StudyLine:
    """Build one line of the list of studies."""
    return models.StudyLine(**_line(summary))


def study(detail: queries.StudyDetail) -> models.Study:
    """Build a study with its series, jobs and deliveries."""
    rows = [each.series for each in detail.series]
    status = study_status(detail.job, rows)
    speaking = _of_status(detail.job, status)
    return models.Study(
        study_instance_uid=detail.study_instance_uid,
        status=status,
        unet_score=None if speaking is None else _unet_score(speaking.job),
        reason=None if speaking is None else _reason(speaking.job),
        series=len(rows),
        images=sum(each.images for each in detail.series),
        last_received_at=max(row.last_received_at for row in rows),
        details=[_series(each) for each in detail.series],
    )


def worklist_line(summary: queries.StudySummary) -> models.WorklistLine:
    """Build one line of the worklist."""
    speaking = _of_status(summary.job, study_status(summary.job, summary.series))
    result: dict[str, Any] = (speaking.job.result if speaking is not None else None) or {}
    by_side = {hip["side"]: hip["unet_score"] for hip in result.get("hips", [])}
    return models.WorklistLine(
        **_line(summary),
        right=by_side.get(Side.RIGHT.value),
        left=by_side.get(Side.LEFT.value),
        quality=[models.Remark(**each) for each in result.get("quality", [])],
    )


def job(detail: queries.JobDetail) -> models.Job:
    """Build one job with its deliveries."""
    row = detail.job
    kinds = {artifact.id: artifact.kind for artifact in detail.artifacts}
    return models.Job(
        id=row.id,
        study_instance_uid=detail.series.study_instance_uid,
        series_instance_uid=detail.series.series_instance_uid,
        state=row.state,
        unet_score=_unet_score(row),
        reason=_reason(row),
        model=_model(row),
        attempts=row.attempts,
        error=row.error,
        supersedes=row.supersedes_id,
        created_at=row.created_at,
        finished_at=row.finished_at,
        next_attempt_at=row.next_attempt_at,
        seconds=row.timings or {},
        deliveries=[delivery(each, kinds[each.artifact_id]) for each in detail.deliveries],
    )


def delivery(row: tables.Delivery, kind: ArtifactKind) -> models.Delivery:
    """Build one delivery."""
    return models.Delivery(
        id=row.id,
        artifact=kind,
        destination=row.destination,
        state=row.state,
        attempts=row.attempts,
        status=None if row.status is None else f"0x{row.status:04X}",
        error=row.error,
        next_attempt_at=row.next_attempt_at,
        finished_at=row.finished_at,
    )


def verdict(given: why.Verdict) -> models.Verdict:
    """Build what is to be said of one series."""
    return models.Verdict(
        series_instance_uid=given.series_instance_uid,
        sentences=list(given.sentences),
        what_next=list(given.what_next),
    )


def event(row: tables.Event) -> models.Event:
    """Build one line of the ledger."""
    return models.Event(
        id=row.id,
        at=row.at,
        what=row.what,
        from_state=row.from_state,
        to_state=row.to_state,
        job=row.job_id,
        delivery=row.delivery_id,
        detail=row.detail,
    )


def _of_status(
    job: queries.JobDetail | None, status: models.Status | None
) -> queries.JobDetail | None:
    """The job, unless the study waits for another one than this."""
    return job if job is not None and _STATUS[job.job.state] is status else None


def _line(summary: queries.StudySummary) -> dict[str, Any]:
    status = study_status(summary.job, summary.series)
    speaking = _of_status(summary.job, status)
    job_row = None if speaking is None else speaking.job
    return {
        "study_instance_uid": summary.study_instance_uid,
        "status": status,
        "unet_score": None if job_row is None else _unet_score(job_row),
        "reason": None if job_row is None else _reason(job_row),
        "series": len(summary.series),
        "images": summary.images,
        "last_received_at": summary.last_received_at,
    }


def _series(detail: queries.SeriesDetail) -> models.Series:
    row = detail.series
    return models.Series(
        series_instance_uid=row.series_instance_uid,
        state=row.state,
        images=detail.images,
        close_reason=row.close_reason,
        match_rule=row.match_rule,
        calling_aet=row.calling_aet,
        first_received_at=row.first_received_at,
        last_received_at=row.last_received_at,
        jobs=[job(each) for each in detail.jobs],
    )


def _unet_score(row: tables.Job) -> float | None:
    return None if row.result is None else row.result["unet_score"]


def _reason(row: tables.Job) -> models.Remark | None:
    if row.result is not None:
        reason = row.result["reason"]
        return None if reason is None else models.Remark(**reason)
    if row.state is JobState.FAILED:
        return models.Remark(code="failed", text=row.error or "no error was recorded")
    return None


def _model(row: tables.Job) -> models.Model:
    return models.Model(id=row.bundle_id, version=row.bundle_version, sha256=row.bundle_sha256)


def _artifacts(study_uid: str, detail: queries.JobDetail, root: str) -> dict[str, str]:
    kinds = {artifact.kind for artifact in detail.artifacts if artifact.purged_at is None}
    base = f"{root}/studies/{quote(study_uid)}/artifacts"
    return {kind.value: f"{base}/{kind.value}" for kind in OFFERED if kind in kinds}
