"""From rows of the database to what the API answers. Reads nothing, changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from hipscore.api import models
from hipscore.domain import ArtifactKind, Side
from hipscore.lifecycle import JobState, SeriesState
from hipscore.store import explaining, queries, tables, why, worklist
from hipscore.store.deliveries import shown
from hipscore.store.summary import WITHDRAWN

_STATUS = {
    JobState.QUEUED: models.Status.QUEUED,
    JobState.ANALYSING: models.Status.ANALYSING,
    JobState.ANALYSED: models.Status.SCORED,
    JobState.NOT_SCORABLE: models.Status.NOT_SCORABLE,
    JobState.FAILED: models.Status.FAILED,
}
_WITHDRAWN = "an operator has withdrawn the result"
PENDING = {models.Status.QUEUED, models.Status.ANALYSING}
_WITHOUT_SCORE = {models.Status.NOT_SCORABLE, models.Status.FAILED}
_ARRIVING = {SeriesState.RECEIVING, SeriesState.COMPLETE}
OFFERED = (
    ArtifactKind.SEG,
    ArtifactKind.SR,
    ArtifactKind.OVERLAY,
    ArtifactKind.PDF,
    ArtifactKind.SC,
)


def study_status(
    job: queries.JobDetail | None, series: Sequence[tables.Series], *, explained: bool = False
) -> models.Status | None:
    """Where the score of a study is; None when every series of it was ignored.

    No score is not final while images arrive: the next series may be the STIR of the hips.
    ``explained``: a study in which no rule matched gets a report, and waits for it.
    """
    if job is not None:
        status = _status(job.job)
        arriving = any(each.state in _ARRIVING for each in series)
        return models.Status.QUEUED if status in _WITHOUT_SCORE and arriving else status
    waiting = any(each.state is not SeriesState.IGNORED for each in series)
    waiting = waiting or (explained and explaining.pending(series))
    return models.Status.QUEUED if waiting else None


def score(
    study_uid: str,
    job: queries.JobDetail | None,
    series: Sequence[tables.Series],
    *,
    root: str,
    explained: bool = False,
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
    explained
        Whether a study in which no rule matched gets a report that says why.
    """
    status = study_status(job, series, explained=explained)
    if status is None:
        return None
    job = _of_status(job, status)
    if job is not None and job.job.result is not None and job.job.withdrawn_at is None:
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


def aware(moment: datetime | None) -> datetime | None:
    """A time of a query; one without zone is UTC, as are all that are shown."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # the first or the last day there is, somewhere else
        return moment.replace(tzinfo=UTC)


def worklist_line(line: worklist.Line) -> models.WorklistLine:
    """Build one line of the worklist."""
    row = line.study
    settled = line.status == row.status  # otherwise it waits for another series
    return models.WorklistLine(
        study_instance_uid=row.study_instance_uid,
        status=None if line.status is None else models.Status(line.status),
        unet_score=row.score,
        reason=_told_reason(line) if settled else None,
        series=line.series,
        images=line.images,
        last_received_at=line.last_received_at,
        right=row.score_right,
        left=row.score_left,
        slices={Side(side): count for side, count in line.told.slices.items()},
        quality=[models.Remark(**each) for each in line.told.quality] if settled else [],
        priority=models.Priority(flag=row.priority, reason=row.priority_reason or None),
        patient_id=row.patient_id,
        patient_name=row.patient_name,
        birth_date=row.birth_date,
        sex=row.sex,
        study_date=row.study_date,
        study_description=row.study_description,
        accession_number=row.accession_number,
        sent=None if line.sending.word is None else models.Sent(line.sending.word),
    )


def _told_reason(line: worklist.Line) -> models.Remark | None:
    if line.study.reason_code == WITHDRAWN:
        return models.Remark(code=WITHDRAWN, text=_WITHDRAWN)
    if line.told.reason is not None:
        return models.Remark(**line.told.reason)
    if line.status == models.Status.FAILED:
        return models.Remark(code="failed", text=line.told.error or "no error was recorded")
    return None


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
        withdrawn_at=row.withdrawn_at,
        next_attempt_at=row.next_attempt_at,
        seconds=row.timings or {},
        engine=row.engine and models.JobEngine.model_validate(row.engine),
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
        status=shown(row.destination, row.status),
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


def _status(row: tables.Job) -> models.Status:
    return models.Status.FAILED if row.withdrawn_at else _STATUS[row.state]


def _of_status(
    job: queries.JobDetail | None, status: models.Status | None
) -> queries.JobDetail | None:
    """The job, unless the study waits for another one than this."""
    return job if job is not None and _status(job.job) is status else None


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
    if row.result is None or row.withdrawn_at is not None:
        return None
    score: float | None = row.result["unet_score"]
    return score


def _reason(row: tables.Job) -> models.Remark | None:
    if row.withdrawn_at is not None:
        return models.Remark(code=WITHDRAWN, text=_WITHDRAWN)
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
