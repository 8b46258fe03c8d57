"""The first page: studies to read, with a form to filter them and one to find a patient."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse

from hipscore.api import models, views
from hipscore.api.pages.rendering import render, root
from hipscore.api.shared import After, AtDesk, Desk
from hipscore.api.worklist import Below, cursor
from hipscore.settings import Settings
from hipscore.store import engine as database
from hipscore.store import worklist
from hipscore.store.summary import WITHDRAWN

router = APIRouter(include_in_schema=False)

LENGTH = 50
#: a search shows the newest of these; whoever finds more asks more precisely
MOST_FOUND = 100
_DAY = re.compile(r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})")
_SINCE = {"1": "the last 24 hours", "7": "the last 7 days", "30": "the last 30 days"}
_TEXT = 64

_Text = Annotated[str, Form(max_length=324)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The form as it was filled in; what cannot be read is said in ``wrong``."""

    wanted: worklist.Wanted
    order: models.WorklistOrder
    values: dict[str, str]
    wrong: tuple[str, ...]

    @property
    def query(self) -> dict[str, str]:
        """The parameters to be kept for the next page."""
        return {name: value for name, value in self.values.items() if value}


@router.get("/", response_class=HTMLResponse)
def show_worklist(
    request: Request, desk: AtDesk, after: After = None, below: Below = None
) -> HTMLResponse:
    """Show the worklist, filtered by what is in the query."""
    fields = _read(request.query_params)
    with database.transaction(desk.readers) as session:
        page = worklist.page(
            fields.wanted,
            highest=fields.order is models.WorklistOrder.HIGHEST,
            after=after,
            below=below,
            limit=LENGTH,
            session=session,
        )
    following = None
    if page.more:
        following = f"{root(request)}/?{urlencode({**fields.query, **cursor(page, fields.order)})}"
    first = f"{root(request)}/?{urlencode(fields.query)}" if after is not None else None
    return _show(request, desk, page, fields, following=following, first=first)


@router.post("/search", response_class=HTMLResponse)
def search(
    request: Request, desk: AtDesk, patient_id: _Text = "", patient_name: _Text = ""
) -> HTMLResponse:
    """Find the studies of a patient. Posted: what identifies a patient stands in no URL."""
    patient_id, patient_name = (
        text.replace("\0", "").strip() for text in (patient_id, patient_name)
    )
    fields = _read({})
    wanted = worklist.Wanted(patient_id=patient_id or None, patient_name=patient_name or None)
    page = worklist.Page(lines=(), more=False)
    if patient_id or patient_name:
        with database.transaction(desk.readers) as session:
            page = worklist.page(wanted, limit=MOST_FOUND, session=session)
    searched = {"patient_id": patient_id, "patient_name": patient_name}
    return _show(request, desk, page, fields, searched=searched)


def _show(
    request: Request,
    desk: Desk,
    page: worklist.Page,
    fields: Fields,
    *,
    following: str | None = None,
    first: str | None = None,
    searched: dict[str, str] | None = None,
) -> HTMLResponse:
    return render(
        request,
        "worklist.html",
        lines=[views.worklist_line(each) for each in page.lines],
        more=page.more,
        most=MOST_FOUND,
        following=following,
        first=first,
        fields=fields,
        values=fields.values,
        since=_SINCE,
        statuses=[*(each.value for each in models.Status), WITHDRAWN],
        flag=_flag(page, desk.settings),
        searched=searched,
        now=datetime.now(UTC),
    )


def _flag(page: worklist.Page, settings: Settings) -> str:
    """What a flag means here; empty where nothing is flagged."""
    score, rise = settings.priority_score, settings.priority_rise
    limits = [
        *([] if score is None else [f"a UNet-score of {score:g} or more"]),
        *([] if rise is None else [f"a rise of {rise:g} or more since the earlier study"]),
    ]
    if not limits and not any(each.study.priority for each in page.lines):
        return ""
    for_what = " or ".join(limits) or "limits that were in force when it was analysed"
    return f"Flagged: {for_what}. A flag never changes the order."


def _read(given: Any) -> Fields:
    """The filters of a query; what is wrong is left out and said."""
    values = {name: str(given.get(name) or "").strip()[:_TEXT] for name in _NAMES}
    wrong: list[str] = []
    known = {each.value for each in models.Status}
    status = values["status"]
    # what was withdrawn has the status failed, but nothing failed about it
    withdrawn = {WITHDRAWN: True, models.Status.FAILED.value: False}.get(status)
    wanted = worklist.Wanted(
        status=models.Status.FAILED.value if withdrawn else status if status in known else None,
        withdrawn=withdrawn,
        priority=True if values["priority"] else None,
        min_score=_number(values, "min_score", wrong),
        max_score=_number(values, "max_score", wrong),
        study_from=_day(values, "study_from", wrong),
        study_to=_day(values, "study_to", wrong),
        since=_since(values["since"]),
        number=values["number"].replace("\0", "") or None,
    )
    highest = values["order"] == models.WorklistOrder.HIGHEST.value
    order = models.WorklistOrder.HIGHEST if highest else models.WorklistOrder.NEWEST
    return Fields(wanted=wanted, order=order, values=values, wrong=tuple(wrong))


_NAMES = (
    "order", "status", "priority", "min_score", "max_score", "study_from", "study_to", "since",
    "number",
)  # fmt: skip
_LABELS = {
    "min_score": "Score from",
    "max_score": "Score to",
    "study_from": "Study date from",
    "study_to": "Study date to",
}


def _number(values: dict[str, str], name: str, wrong: list[str]) -> float | None:
    text = values[name].replace(",", ".")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:
        wrong.append(f"{_LABELS[name]}: {values[name]!r} is not a number, such as 7.5")
        return None
    return value


def _day(values: dict[str, str], name: str, wrong: list[str]) -> str | None:
    text = values[name]
    if not text:
        return None
    found = _DAY.fullmatch(text)
    if found is None or not found[0].isascii():
        wrong.append(f"{_LABELS[name]}: {text!r} is not a date, such as 2026-03-14")
        return None
    return "".join(found.groups())


def _since(days: str) -> datetime | None:
    return datetime.now(UTC) - timedelta(days=int(days)) if days in _SINCE else None
