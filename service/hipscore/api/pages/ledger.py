"""The ledger of a study as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse

from hipscore.api.pages.rendering import render
from hipscore.api.shared import AtDesk, Uid
from hipscore.store import account, ledger, studies
from hipscore.store import engine as database
from hipscore.store.why import explain

router = APIRouter(include_in_schema=False)

#: a form sends an empty text for what is not chosen
_Row = Annotated[str, Query(pattern=r"^([1-9][0-9]{0,17})?$")]


@router.get("/studies/{uid}/ledger/view", response_class=HTMLResponse)
def show_ledger(
    uid: Uid, request: Request, desk: AtDesk, job: _Row = "", delivery: _Row = ""
) -> HTMLResponse:
    """Show what happened to a study, all of it or what is about a job or a delivery."""
    with database.transaction(desk.readers) as session:
        row = studies.by_uid(uid, session=session)
        events = ledger.of_study(uid, session=session)
        if row is None or not events:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"study {uid} is unknown")
        accounts = account.find(uid, session=session).accounts
        around = account.surroundings(
            quiet_seconds=desk.settings.quiet_seconds,
            explains=desk.settings.explain_unmatched,
            now=datetime.now(UTC),
            session=session,
        )
    shown = [
        each
        for each in events
        if (not job or each.job_id == int(job))
        and (not delivery or each.delivery_id == int(delivery))
    ]
    return render(
        request,
        "ledger.html",
        uid=uid,
        row=row,
        verdicts=[explain(each, around) for each in accounts],
        series={each.series.id: each.series.series_instance_uid for each in accounts},
        events=[(each, _details(each.detail)) for each in shown],
        total=len(events),
        jobs=sorted({each.job_id for each in events if each.job_id is not None}),
        deliveries=sorted({each.delivery_id for each in events if each.delivery_id is not None}),
        job=job,
        delivery=delivery,
    )


def _details(detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values, without those that say nothing."""
    return [
        (name.replace("_", " "), _text(value))
        for name, value in detail.items()
        if value not in (None, "", [], {})
    ]


def _text(value: Any) -> str:
    if isinstance(value, list):
        counts = Counter(_text(each) for each in value)
        return "; ".join(
            text if count == 1 else f"{count} × {text}" for text, count in counts.items()
        )
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    if isinstance(value, float):
        return f"{value:.2f}"
    return str(value)
