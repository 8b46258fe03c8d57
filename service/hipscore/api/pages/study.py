"""The page of one study: its slices, its scores, what was made of them and where that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse

from hipscore.api import studies as api
from hipscore.api import views
from hipscore.api.pages import chart, words
from hipscore.api.pages.rendering import render
from hipscore.api.shared import AtDesk, Desk, Uid
from hipscore.domain import ArtifactKind, Group, Side
from hipscore.lifecycle import DELIVERY, JOB, DeliveryEvent, DeliveryState, JobEvent, JobState
from hipscore.reporting.rejection import Why
from hipscore.store import account, queries, sending, slices, studies
from hipscore.store import engine as database
from hipscore.store.outbox import arrived
from hipscore.store.queries import JobDetail
from hipscore.store.retracting import takes_back
from hipscore.store.tables import ArtifactRow, Delivery, Job, Study
from hipscore.store.why import Verdict, explain

router = APIRouter(include_in_schema=False)

_NAMES = {
    ArtifactKind.SEG: "Segmentation (DICOM SEG)",
    ArtifactKind.SR: "Structured report (DICOM SR)",
    ArtifactKind.SR_FALLBACK: "Structured report (Comprehensive SR)",
    ArtifactKind.OVERLAY: "Contact sheet (PNG)",
    ArtifactKind.SC: "Pictures (DICOM secondary capture)",
    ArtifactKind.PDF: "Report (PDF)",
    ArtifactKind.ORU: "HL7 message",
    ArtifactKind.REJECTION: "Retraction (DICOM KO)",
}
_TAKEN_BACK = "Retraction (HL7 message)"
_REASONS = {
    Why.QUALITY.value: "it is wrong or useless",
    Why.SAFETY.value: "it may harm the patient",
    Why.WORKLIST.value: "it is of the wrong patient or study",
}
_THERE = (DeliveryState.SENT, DeliveryState.COMMITTED)
_OFFERED = {each.value for each in api.Kind}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One line of the table of numbers: what, then right, left and both."""

    name: str
    right: str
    left: str
    both: str
    main: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One delivery as it is shown."""

    row: Delivery
    what: str
    arrived: bool
    given_up: bool
    may_retry: bool

    @property
    def urgency(self) -> int:
        """The lower, the sooner somebody has to look at it."""
        return 0 if self.given_up else 2 if self.arrived else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcels:
    """What goes to one destination under one name: one object, or many pictures.

    ``worst`` is the one that somebody has to look at first.
    """

    worst: Sent
    all: tuple[Sent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """One job as it is shown. ``note`` says if its result does not count any more.

    ``score`` is not that of a withdrawn one, which nobody is to read.
    """

    detail: JobDetail
    score: float | None
    note: str
    may_retry: bool
    deliveries: tuple[Parcels, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the page is made of."""

    row: Study
    detail: queries.StudyDetail
    order: list[str]
    verdicts: tuple[Verdict, ...]
    purged_at: datetime | None


@router.get("/studies/{uid}/view", response_class=HTMLResponse)
def show_study(uid: Uid, request: Request, desk: AtDesk) -> HTMLResponse:
    """Show a study."""
    found = _find(uid, desk)
    speaking = found.detail.job
    job = None if speaking is None else speaking.job
    shown = job is not None and job.withdrawn_at is None
    result: Mapping[str, Any] = (job.result if job is not None and shown else None) or {}
    explained = desk.settings.explain_unmatched
    members = [each.series for each in found.detail.series]
    status = views.study_status(speaking, members, explained=explained)
    hips = {hip["side"]: hip for hip in result.get("hips", [])}
    viewer = desk.settings.viewer_url
    return render(
        request,
        "study.html",
        uid=uid,
        row=found.row,
        status=None if status is None else status.value,
        withdrawn_at=None if job is None else job.withdrawn_at,
        reasons=_REASONS,
        result=result,
        hips=hips,
        measures=_measures(hips, result.get("unet_score")),
        chart=chart.ratios(result.get("hips", []), found.order),
        start=_start(result.get("hips", [])),
        pictures=job is not None and found.purged_at is None,
        outlined=speaking is not None and shown and _outlined(speaking),
        purged_at=found.purged_at,
        verdicts=found.verdicts,
        analyses=[
            _analysis(each, found.detail) for series in found.detail.series for each in series.jobs
        ],
        current=None if speaking is None else _analysis(speaking, found.detail),
        downloads=[] if speaking is None or not shown else _downloads(speaking),
        series=found.detail.series,
        viewer=None if viewer is None else viewer.replace("{study}", uid),
        now=datetime.now(UTC),
    )


def _find(uid: str, desk: Desk) -> Found:
    with database.transaction(desk.readers) as session:
        row = studies.by_uid(uid, session=session)
        detail = queries.study(uid, session=session)
        if row is None or detail is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"study {uid} is unknown")
        job = detail.job
        order = [] if job is None else slices.in_order(job.job.id, session=session)
        sources = None if job is None else slices.sources(uid, job.job.id, session=session)
        accounts = account.find(uid, session=session).accounts
        around = account.surroundings(
            quiet_seconds=desk.settings.quiet_seconds,
            explains=desk.settings.explain_unmatched,
            now=datetime.now(UTC),
            session=session,
        )
    return Found(
        row=row,
        detail=detail,
        order=order,
        verdicts=tuple(explain(each, around) for each in accounts),
        purged_at=None if sources is None else sources.purged_at,
    )


# --- numbers -------------------------------------------------------------------------------

_LINES = (
    ("of it bone marrow edema (BME)", "bme_score", "{:.2f}"),
    ("of it synovitis/effusion", "synovitis_score", "{:.2f}"),
    ("Mean ratio per slice", "mean_ratio", "{:.2f}"),
    ("Whole-volume index", "whole_volume_index", "{:.2f}"),
    ("Femoral head", "femoral_head_ml", "{:.2f} mL"),
    ("BME", "bme_ml", "{:.2f} mL"),
    ("Synovitis/effusion", "synovitis_ml", "{:.2f} mL"),
    ("Largest effusion thickness", "effusion_mm", "{:.2f} mm"),
    ("Confidence of the location", "confidence", "{:.2f}"),
)


def _measures(hips: Mapping[str, Mapping[str, Any]], total: float | None) -> list[Measure]:
    """The table of numbers; empty without any hip."""
    if not hips:
        return []
    right, left = (hips.get(side.value) for side in (Side.RIGHT, Side.LEFT))
    scored = [hip for hip in hips.values() if hip["unet_score"] is not None]
    counts = sum(hip["slices_used"] for hip in scored)
    first = Measure(
        name="UNet-score",
        right=_cell(right, "unet_score", "{:.2f}"),
        left=_cell(left, "unet_score", "{:.2f}"),
        both=words.score(total),
        main=True,
    )
    used = Measure(
        name="Slices summed",
        right=_cell(right, "slices_used", "{}"),
        left=_cell(left, "slices_used", "{}"),
        both=str(counts) if scored else words.score(None),
    )
    grouped = Measure(
        name="anterior + central + posterior", right=_groups(right), left=_groups(left), both=""
    )
    rest = [
        Measure(name=name, right=_cell(right, key, form), left=_cell(left, key, form), both="")
        for name, key, form in _LINES
    ]
    return [first, *rest[:2], used, grouped, *rest[2:]]


def _cell(hip: Mapping[str, Any] | None, key: str, form: str) -> str:
    value = None if hip is None else hip.get(key)
    return words.score(None) if value is None else form.format(value)


def _groups(hip: Mapping[str, Any] | None) -> str:
    if hip is None:
        return words.score(None)
    groups = [item["group"] for item in hip["slices"]]
    return " + ".join(str(groups.count(group.value)) for group in Group)


def _outlined(detail: JobDetail) -> bool:
    """Whether anything was segmented, so that there are outlines to switch."""
    return any(each.kind is ArtifactKind.SEG and not each.purged_at for each in detail.artifacts)


def _start(hips: Sequence[Mapping[str, Any]]) -> str:
    """The slice to begin with: the largest section of a head."""
    sections = [item for hip in hips for item in hip["slices"]]
    if not sections:
        return ""
    return chart.key(max(sections, key=lambda item: float(item["head_mm2"])))


# --- what was made, and where it is --------------------------------------------------------


def _analysis(detail: JobDetail, study: queries.StudyDetail) -> Analysis:
    job = detail.job
    made = {artifact.id: artifact for artifact in detail.artifacts}
    withdrawn = job.withdrawn_at is not None
    deliveries = [
        _sent(each, made[each.artifact_id], withdrawn=withdrawn) for each in detail.deliveries
    ]
    later = [
        each.job.id
        for series in study.series
        for each in series.jobs
        if each.job.supersedes_id == job.id
    ]
    given = None if job.withdrawn_at else (job.result or {}).get("unet_score")
    reports = any(
        each.row.state in _THERE and made[each.row.artifact_id].kind is ArtifactKind.SR
        for each in deliveries
    )
    stays = " Its report stays in the PACS." if reports else ""
    note = ""
    if job.withdrawn_at is not None:
        note = f"withdrawn {words.moment(job.withdrawn_at)} UTC.{stays}"
    elif later:
        note = f"superseded by job {max(later)}.{stays}"
    return Analysis(
        detail=detail,
        score=given,
        note=note,
        may_retry=may_retry(job),
        deliveries=parcels(deliveries),
    )


def parcels(deliveries: Iterable[Sent]) -> tuple[Parcels, ...]:
    """The deliveries in their order, equal ones to the same destination as one."""
    groups: dict[tuple[str, str], list[Sent]] = {}
    for each in deliveries:
        groups.setdefault((each.row.destination, each.what), []).append(each)
    return tuple(
        Parcels(worst=min(group, key=lambda each: each.urgency), all=tuple(group))
        for group in groups.values()
    )


def may_retry(job: Job) -> bool:
    """Whether trying again now would change anything."""
    waits = job.state is not JobState.QUEUED or job.next_attempt_at is not None
    return waits and JobEvent.RETRY in JOB[job.state]


def _sent(row: Delivery, artifact: ArtifactRow, *, withdrawn: bool) -> Sent:
    back = takes_back(artifact)
    settled = arrived(row.state, row.commit_at, row.form_id)
    return Sent(
        row=row,
        what=_TAKEN_BACK if back and artifact.kind is ArtifactKind.ORU else name(artifact.kind),
        arrived=settled,
        given_up=row.state in sending.GIVEN_UP and not settled,
        # what was withdrawn does not go out any more
        may_retry=DeliveryEvent.RETRY in DELIVERY[row.state] and (back or not withdrawn),
    )


def name(kind: ArtifactKind) -> str:
    """What an artifact is called on the pages."""
    return _NAMES.get(kind, kind.value)


def _downloads(detail: JobDetail) -> list[tuple[str, str, bool]]:
    """Kind, name and whether it is still here, of what can be fetched."""
    offered = {
        each.kind: each.purged_at is None
        for each in detail.artifacts
        if each.kind.value in _OFFERED
    }
    return [(kind.value, _NAMES[kind], here) for kind, here in offered.items()]
