"""The queue as a page: what waits since when, what has not arrived, what failed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from hipscore.api.pages.rendering import render
from hipscore.api.pages.study import may_retry
from hipscore.api.shared import AtDesk
from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DELIVERY, DeliveryEvent, JobState
from hipscore.store import engine as database
from hipscore.store import outbox, queries, worklist

router = APIRouter(include_in_schema=False)

#: so many are listed; the numbers above the lists count all
_LISTED = 100
_OPEN = (JobState.FAILED, JobState.ANALYSING, JobState.QUEUED)


@router.get("/queue", response_class=HTMLResponse)
def show_queue(
    request: Request,
    desk: AtDesk,
    state: Annotated[JobState | None, Query(description="only jobs in this state")] = None,
) -> HTMLResponse:
    """Show what waits, what has not arrived and what failed."""
    with database.transaction(desk.readers) as session:
        counts = queries.counts(session=session)
        undelivered = outbox.undelivered(limit=_LISTED + 1, session=session)
        states = _OPEN if state is None else (state,)
        jobs = [
            each
            for one in states
            for each in queries.jobs(state=one, limit=_LISTED, session=session)
        ]
        studies = queries.studies_of_series(
            [each.series_instance_uid for each in undelivered], session=session
        )
    return render(
        request,
        "queue.html",
        counts=counts,
        undelivered=[
            (
                each,
                ArtifactKind(each.kind).value,
                studies[each.series_instance_uid],
                each.delivery.state in worklist.GIVEN_UP,
                DeliveryEvent.RETRY in DELIVERY[each.delivery.state],
            )
            for each in undelivered[:_LISTED]
        ],
        more=len(undelivered) > _LISTED,
        listed=_LISTED,
        jobs=[(each, may_retry(each.job)) for each in jobs],
        states=list(JobState),
        state=state,
        now=datetime.now(UTC),
    )
