"""Studies: their scores, their history and what was made of them."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from math import ceil

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from hipscore.api import models, views
from hipscore.api.shared import COMMON, NOT_FOUND, After, AtDesk, Limit, Uid
from hipscore.header import read_image
from hipscore.store import account, ledger, queries
from hipscore.store import engine as database
from hipscore.store.why import explain

router = APIRouter(tags=["studies"], responses=COMMON)

#: seconds a client should wait before it asks again for a score that is being made
POLL_SECONDS = 2
#: a longer wait than this is not suggested, even if the next attempt is hours away
LONGEST_POLL_SECONDS = 60


class Kind(StrEnum):
    """An artifact that can be downloaded: DICOM, but for the overlay (PNG) and the PDF."""

    SEG = "seg"
    SR = "sr"
    OVERLAY = "overlay"
    PDF = "pdf"
    SC = "sc"


_SUFFIX = {"application/dicom": "dcm", "image/png": "png", "application/pdf": "pdf"}
_FILE = {"schema": {"type": "string", "format": "binary"}}


@router.get(
    "/studies/{uid}/score",
    response_model=models.Score,
    responses={
        202: {
            "model": models.Score,
            "description": "not finished yet",
            "headers": {"Retry-After": {"schema": {"type": "integer"}}},
        },
        **NOT_FOUND,
    },
)
def get_score(uid: Uid, request: Request, desk: AtDesk) -> Response:
    """Return the score of a study; 202 while it is being made."""
    with database.transaction(desk.readers) as session:
        job = queries.latest_job_of_study(uid, session=session)
        series = queries.series_of_study(uid, session=session)
    if not series:
        raise _unknown(uid)
    explained = desk.settings.explain_unmatched
    root = request.scope.get("root_path", "")
    score = views.score(uid, job, series, root=root, explained=explained)
    if score is None:
        rules = ", ".join(sorted({each.match_rule or "" for each in series}))
        raise HTTPException(
            HTTPStatus.NOT_FOUND, f"study {uid} has no series to score; all ignored by: {rules}"
        )
    pending = score.status in views.PENDING
    return JSONResponse(
        score.model_dump(mode="json", exclude_unset=True),
        status_code=HTTPStatus.ACCEPTED if pending else HTTPStatus.OK,
        headers={"Retry-After": str(_poll(job))} if pending else None,
    )


@router.get("/studies", response_model=models.StudyPage)
def list_studies(
    request: Request, desk: AtDesk, after: After = None, limit: Limit = 50
) -> models.StudyPage:
    """List the studies, the one with the newest series first."""
    with database.transaction(desk.readers) as session:
        page = queries.studies(after=after, limit=limit, session=session)
    full = len(page) == limit
    root = request.scope.get("root_path", "")
    return models.StudyPage(
        items=[views.study_line(each) for each in page],
        next=f"{root}/studies?after={page[-1].cursor}&limit={limit}" if full else None,
    )


@router.get("/studies/{uid}", response_model=models.Study, responses=NOT_FOUND)
def get_study(uid: Uid, desk: AtDesk) -> models.Study:
    """Return a study with its series, jobs and deliveries."""
    with database.transaction(desk.readers) as session:
        found = queries.study(uid, session=session)
    if found is None:
        raise _unknown(uid)
    return views.study(found)


@router.get("/studies/{uid}/ledger", response_model=models.Ledger, responses=NOT_FOUND)
def get_ledger(uid: Uid, desk: AtDesk) -> models.Ledger:
    """Return everything that happened to a study: why it was (not) scored, where results are."""
    with database.transaction(desk.readers) as session:
        events = ledger.of_study(uid, session=session)
        if not events:
            raise _unknown(uid)
        found = account.find(uid, session=session)
        around = account.surroundings(
            quiet_seconds=desk.settings.quiet_seconds,
            explains=desk.settings.explain_unmatched,
            now=datetime.now(UTC),
            session=session,
        )
    return models.Ledger(
        study_instance_uid=uid,
        verdict=[views.verdict(explain(each, around)) for each in found.accounts],
        events=[views.event(each) for each in events],
    )


@router.get(
    "/studies/{uid}/artifacts/{kind}",
    response_class=Response,
    responses={
        200: {
            "content": {"application/dicom": _FILE, "image/png": _FILE, "application/pdf": _FILE}
        },
        410: {"description": "withdrawn, or purged by the retention policy"},
        **NOT_FOUND,
    },
)
def get_artifact(uid: Uid, kind: Kind, desk: AtDesk) -> Response:
    """Return the segmentation, the report, the overlay, the PDF or the summary page of a study."""
    with database.transaction(desk.readers) as session:
        job = queries.latest_job_of_study(uid, session=session)
        known = bool(queries.series_of_study(uid, session=session))
    if not known:
        raise _unknown(uid)
    made = () if job is None else job.artifacts
    found = next((each for each in made if each.kind.value == kind.value), None)
    if job is None or found is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"study {uid} has no {kind.value}")
    if job.job.withdrawn_at is not None:
        msg = f"the result of study {uid} was withdrawn on {job.job.withdrawn_at:%Y-%m-%d}"
        raise HTTPException(HTTPStatus.GONE, msg)
    if found.purged_at is not None:
        msg = f"the {kind.value} of study {uid} was purged on {found.purged_at:%Y-%m-%d}"
        raise HTTPException(HTTPStatus.GONE, f"{msg}; it was delivered before")
    data, media_type = desk.spool.read(found.spool_key, found.sha256), found.media_type
    if kind is Kind.PDF:
        data, media_type = _document(data), "application/pdf"
    shown = "attachment" if media_type == "application/dicom" else "inline"
    name = f"{kind.value}-{uid}.{_SUFFIX[media_type]}"
    return Response(
        data,
        media_type=media_type,
        headers={
            "Content-Disposition": f'{shown}; filename="{name}"',
            "ETag": f'"{found.sha256}"',
            "X-Content-Type-Options": "nosniff",
        },
    )


def _document(data: bytes) -> bytes:
    """Cut the PDF out of its DICOM object (PS3.3 C.24.2), without the padding byte."""
    image = read_image(data)
    document: bytes = image.EncapsulatedDocument
    return document[: image.get("EncapsulatedDocumentLength", len(document))]


def _unknown(uid: str) -> HTTPException:
    return HTTPException(HTTPStatus.NOT_FOUND, f"study {uid} is unknown")


def _poll(job: queries.JobDetail | None) -> int:
    if job is None or job.job.next_attempt_at is None:
        return POLL_SECONDS
    wait = (job.job.next_attempt_at - datetime.now(UTC)).total_seconds()
    return min(max(ceil(wait), POLL_SECONDS), LONGEST_POLL_SECONDS)
