"""All scored studies of a patient over time, as JSON and as a page."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse

from hipscore.api import models
from hipscore.api.pages import chart, words
from hipscore.api.pages.rendering import render
from hipscore.api.shared import COMMON, NOT_FOUND, AtDesk, Desk, Uid
from hipscore.domain import Side
from hipscore.store import engine as database
from hipscore.store import studies, trend
from hipscore.store.tables import Study

router = APIRouter(tags=["studies"], responses=COMMON)


@router.get("/studies/{uid}/trend.json", response_model=models.Trend, responses=NOT_FOUND)
def get_trend(uid: Uid, desk: AtDesk) -> models.Trend:
    """Return all scored studies of the patient of this study, oldest first.

    A point is comparable if it has the model and the slice counts of this study, or, where
    this one has no score, of the newest.
    """
    _, found = _find(uid, desk)
    return models.Trend(study_instance_uid=uid, points=found)


@router.get("/studies/{uid}/trend", response_class=HTMLResponse, include_in_schema=False)
def show_trend(uid: Uid, request: Request, desk: AtDesk) -> HTMLResponse:
    """Show them as a curve and a table."""
    row, found = _find(uid, desk)
    return render(
        request,
        "trend.html",
        uid=uid,
        row=row,
        points=found,
        chart=chart.trend(found, uid),
        sides=list(Side),
    )


def _find(uid: str, desk: Desk) -> tuple[Study, list[models.TrendPoint]]:
    with database.transaction(desk.readers) as session:
        row = studies.by_uid(uid, session=session)
        if row is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"study {uid} is unknown")
        if row.patient_key is None:
            alone = trend.of_one(row, session=session)
            results = [] if alone is None else [alone]
        else:
            results = trend.of_patient(row.patient_key, whose=studies.of(row), session=session)
    return row, points(results, uid)


def points(results: list[trend.Result], study_uid: str) -> list[models.TrendPoint]:
    """Judge each result beside that of the study, or of the newest where that has none."""
    if not results:
        return []
    own = next((each for each in results if each.study_instance_uid == study_uid), results[-1])
    return [_point(each, own) for each in results]


def _point(each: trend.Result, own: trend.Result) -> models.TrendPoint:
    same_model = each.model == own.model
    remarks = [] if same_model else [f"other model: {each.model or 'unknown'}"]
    if set(each.hips) != set(own.hips):
        remarks.append(f"scored: {_named(each)}; in this study: {_named(own)}")
    hips = {}
    for side in Side:
        hip, here = each.hips.get(side.value), own.hips.get(side.value)
        if hip is None:
            continue
        same_count = here is None or hip.slices_used == here.slices_used
        if not same_count and here is not None:
            count = words.plural(hip.slices_used, "slice")
            remarks.append(f"{side.value} hip: {count}, in this study {here.slices_used}")
        hips[side] = models.TrendHip(
            unet_score=hip.unet_score,
            slices_used=hip.slices_used,
            mean_ratio=hip.mean_ratio,
            whole_volume_index=hip.whole_volume_index,
            comparable=same_model and same_count,
        )
    return models.TrendPoint(
        study_instance_uid=each.study_instance_uid,
        study_date=each.study_date,
        accession_number=each.accession_number,
        unet_score=each.unet_score,
        hips=hips,
        model=each.model,
        source="database" if each.ours else "report",
        comparable=not remarks,
        remarks=remarks,
    )


def _named(result: trend.Result) -> str:
    return " and ".join(sorted(result.hips, reverse=True)) or "no hip"
