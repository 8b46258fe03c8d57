"""The queue as a page: what waits since when, what has not arrived, what failed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from hipscore.api.pages.rendering import render
from hipscore.api.pages.study import Parcels, Sent, may_retry, name, parcels
from hipscore.api.shared import AtDesk
from hipscore.lifecycle import DELIVERY, DeliveryEvent, DeliveryState, JobState
from hipscore.store import engine as database
from hipscore.store import outbox, queries, sending

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
        named = sending.named(
            [*studies.values(), *(each.series.study_instance_uid for each in jobs)],
            session=session,
        )
        stopped = sending.stopped([each.delivery.id for each in undelivered], session=session)
    return render(
        request,
        "queue.html",
        counts=counts,
        undelivered=_groups(undelivered[:_LISTED], studies, stopped),
        deliveries=len(undelivered[:_LISTED]),
        unsent=any(each.delivery.state is not DeliveryState.SENT for each in undelivered),
        named=named,
        more=len(undelivered) > _LISTED,
        listed=_LISTED,
        jobs=[(each, may_retry(each.job)) for each in jobs],
        states=list(JobState),
        state=state,
        now=datetime.now(UTC),
    )


def _groups(
    undelivered: Sequence[outbox.Undelivered], studies: Mapping[str, str], stopped: Collection[int]
) -> list[tuple[Parcels, str, int]]:
    """What goes to the same place for the same job in one line; its study, and its job."""
    by_job: dict[tuple[int, str], list[Sent]] = {}
    for each in undelivered:
        row = each.delivery
        by_job.setdefault((each.job_id, studies[each.series_instance_uid]), []).append(
            Sent(
                row=row,
                what=name(each.kind),
                arrived=False,
                given_up=row.state in sending.GIVEN_UP,
                may_retry=DeliveryEvent.RETRY in DELIVERY[row.state] and row.id not in stopped,
            )
        )
    groups = [
        (group, study, job_id)
        for (job_id, study), sent in by_job.items()
        for group in parcels(sent)
    ]
    return sorted(groups, key=lambda each: each[0].worst.urgency)
