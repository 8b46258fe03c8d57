"""The reading worklist as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request

from hipscore.api import models, views
from hipscore.api.shared import COMMON, After, AtDesk, Limit
from hipscore.store import engine as database
from hipscore.store import worklist

router = APIRouter(tags=["worklist"], responses=COMMON)

Below = Annotated[
    float | None, Query(allow_inf_nan=False, description="as `after`, where `next` has it")
]
Score = Annotated[float | None, Query(allow_inf_nan=False, description="UNet-score, included")]
Day = Annotated[
    str | None, Query(pattern=r"^[0-9]{8}$", description="study date, YYYYMMDD, included")
]
Since = Annotated[
    datetime | None, Query(description="a series of it began to arrive then or later")
]
Number = Annotated[
    str | None,
    Query(
        max_length=64,
        pattern=r"^[^\x00]*$",
        description="exactly its accession number or Study Instance UID",
    ),
]


@router.get("/worklist", response_model=models.Worklist)
def get_worklist(
    *,
    request: Request,
    desk: AtDesk,
    order: Annotated[
        models.WorklistOrder, Query(description="`highest`: studies without score come last")
    ] = models.WorklistOrder.NEWEST,
    status: Annotated[models.Status | None, Query(description="only these")] = None,
    priority: Annotated[bool | None, Query(description="only flagged, or only others")] = None,
    min_score: Score = None,
    max_score: Score = None,
    study_from: Day = None,
    study_to: Day = None,
    since: Since = None,
    number: Number = None,
    after: After = None,
    below: Below = None,
    limit: Limit = 50,
) -> models.Worklist:
    """List the studies to read with the score of each hip. A flag never changes the order."""
    wanted = worklist.Wanted(
        status=None if status is None else status.value,
        priority=priority,
        min_score=min_score,
        max_score=max_score,
        study_from=study_from,
        study_to=study_to,
        since=views.aware(since),
        number=number or None,
    )
    with database.transaction(desk.readers) as session:
        page = worklist.page(
            wanted,
            highest=order is models.WorklistOrder.HIGHEST,
            after=after,
            below=below,
            limit=limit,
            session=session,
        )
    kept = {
        name: value
        for name, value in request.query_params.items()
        if name not in {"after", "below", "limit", "order"}
    }
    following = None
    if page.more:
        query = {**kept, "order": order.value, **cursor(page, order), "limit": limit}
        following = f"{request.scope.get('root_path', '')}/worklist?{urlencode(query)}"
    return models.Worklist(items=[views.worklist_line(each) for each in page.lines], next=following)


def cursor(page: worklist.Page, order: models.WorklistOrder) -> dict[str, str]:
    """Where the next page begins, as query parameters."""
    last = page.lines[-1].study
    found = {"after": str(last.newest_series_id)}
    if order is models.WorklistOrder.HIGHEST and last.score is not None:
        found["below"] = repr(last.score)  # read back as the same float
    return found
