"""Jobs and deliveries: what is being done, and doing it again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

from celery import Celery
from fastapi import APIRouter, Query, Request

from hipscore import queue
from hipscore.api import models, views
from hipscore.api.shared import COMMON, CONFLICT, NOT_FOUND, After, AtDesk, Desk, Limit, RowId
from hipscore.keeping import withdrawal
from hipscore.lifecycle import JobState
from hipscore.store import deliveries, jobs, queries
from hipscore.store import engine as database
from hipscore.store.moves import NotFound
from hipscore.store.tables import ArtifactRow

router = APIRouter(tags=["work"], responses=COMMON)


@router.get("/jobs", response_model=models.JobPage)
def list_jobs(
    request: Request,
    desk: AtDesk,
    state: Annotated[JobState | None, Query(description="only jobs in this state")] = None,
    after: After = None,
    limit: Limit = 50,
) -> models.JobPage:
    """List the jobs, newest first."""
    with database.transaction(desk.readers) as session:
        page = queries.jobs(state=state, after=after, limit=limit, session=session)
    following = None
    if len(page) == limit:
        root = request.scope.get("root_path", "")
        kept = f"&state={state.value}" if state is not None else ""
        following = f"{root}/jobs?after={page[-1].job.id}&limit={limit}{kept}"
    return models.JobPage(items=[views.job(each) for each in page], next=following)


@router.post(
    "/jobs/{job_id}/retry",
    status_code=HTTPStatus.ACCEPTED,
    response_model=models.Job,
    responses={**NOT_FOUND, **CONFLICT},
)
def retry_job(job_id: RowId, desk: AtDesk) -> models.Job:
    """Analyse again at once: a failed job, or one that waits for its next attempt."""
    now = datetime.now(UTC)
    with database.transaction(desk.writers) as session:
        jobs.retry(job_id, now=now, session=session)
        detail = queries.job(job_id, session=session)
    if detail is None:
        msg = f"there is no job {job_id}"
        raise NotFound(msg)
    _announce(desk, job_id, queue.enqueue_analyse)
    return views.job(detail)


@router.post(
    "/jobs/{job_id}/withdraw",
    status_code=HTTPStatus.ACCEPTED,
    response_model=models.Job,
    responses={400: {"description": "the body is no JSON"}, **NOT_FOUND, **CONFLICT},
)
def withdraw_result(job_id: RowId, body: models.Withdrawal, desk: AtDesk) -> models.Job:
    """Withdraw a result for good: its score fails, and every destination that has it is told."""
    ids = withdrawal.withdraw(
        job_id,
        body.reason,
        sessions=desk.writers,
        spool=desk.spool,
        device_name=desk.settings.ae_title,
        now=datetime.now(UTC),
    )
    with database.transaction(desk.readers) as session:
        detail = queries.job(job_id, session=session)
    if detail is None:
        msg = f"there is no job {job_id}"
        raise NotFound(msg)
    for delivery_id in ids:
        _announce(desk, delivery_id, queue.enqueue_deliver)
    return views.job(detail)


@router.post(
    "/deliveries/{delivery_id}/retry",
    status_code=HTTPStatus.ACCEPTED,
    response_model=models.Delivery,
    responses={**NOT_FOUND, **CONFLICT},
)
def retry_delivery(delivery_id: RowId, desk: AtDesk) -> models.Delivery:
    """Send the same bytes again at once."""
    now = datetime.now(UTC)
    with database.transaction(desk.writers) as session:
        row = deliveries.retry(delivery_id, now=now, session=session)
        kind = session.get_one(ArtifactRow, row.artifact_id).kind
    _announce(desk, delivery_id, queue.enqueue_deliver)
    return views.delivery(row, kind)


def _announce(desk: Desk, row_id: int, publish: Callable[[Celery, int], bool]) -> None:
    """Tell the workers; if the broker is down, the reaper will."""
    publish(desk.broker, row_id)
