"""The slices of a study: which there are, each as a picture, and its outlines."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response

from hipscore.api import models
from hipscore.api.pictures import Gallery, NoPicture, Stack, Style
from hipscore.api.shared import COMMON, NOT_FOUND, AtDesk, Desk, Uid
from hipscore.domain import Channel
from hipscore.reporting import codes
from hipscore.reporting.picture import Window
from hipscore.store import engine as database
from hipscore.store import slices
from hipscore.store.slices import Sources

router = APIRouter(tags=["studies"], responses=COMMON)

#: images of a job never change, but those of patients must not stay in a browser for long;
#: outlines are asked for each time, because they may be withdrawn
_KEEP = "private, max-age=3600, immutable"
_ASK = "private, no-cache"
_LARGEST_ID = 2**63 - 1

Number = Annotated[int, Path(ge=1, le=1_000_000, description="from 1, anterior to posterior")]
OfJob = Annotated[
    int | None,
    Query(
        ge=1, le=_LARGEST_ID, alias="job", description="of this job; default: the one that speaks"
    ),
]
Value = Annotated[
    float | None, Query(allow_inf_nan=False, ge=-1e9, le=1e9, description="stored value")
]
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "the browser has it"},
    410: {"description": "the images were purged by the retention policy, or (outlines) withdrawn"},
    **NOT_FOUND,
}


@router.get(
    "/studies/{uid}/slices.json",
    response_model=models.Stack,
    responses={410: _PNG[410], **NOT_FOUND},
)
def get_slices(uid: Uid, request: Request, desk: AtDesk, job: OfJob = None) -> models.Stack:
    """List the slices that were scored, and how they are shown."""
    sources = _sources(uid, job, desk)
    stack = _stack(request, sources)
    height, width = stack.pixel_mm
    _, rows, columns = stack.voxels.shape
    left, right = stack.letters
    return models.Stack(
        study_instance_uid=uid,
        job=sources.job_id,
        rows=rows,
        columns=columns,
        height_mm=height * rows,
        width_mm=width * columns,
        left_border=left,
        right_border=right,
        window_low=stack.window.low,
        window_high=stack.window.high,
        lowest=stack.lowest,
        highest=stack.highest,
        structures=[
            models.Structure(name=codes.STRUCTURES[each].noun, rgb=codes.STRUCTURES[each].rgb)
            for each in Channel
        ],
        slices=[
            models.ShownSlice(
                number=z + 1,
                sop_instance_uid=source.sop_instance_uid,
                frame_number=source.frame_number,
                instance_number=source.instance_number,
                outlined=sources.withdrawn_at is None and stack.outlined(z),
            )
            for z, source in enumerate(stack.sources)
        ],
    )


@router.get("/studies/{uid}/slices/{number}.png", response_class=Response, responses=_PNG)
def get_slice(
    *,
    uid: Uid,
    number: Number,
    request: Request,
    desk: AtDesk,
    job: OfJob = None,
    low: Value = None,
    high: Value = None,
) -> Response:
    """Return a slice in 256 greys, `low` black and `high` white (default: a window for STIR)."""
    if (low is None) != (high is None) or (low is not None and high is not None and low >= high):
        raise HTTPException(
            HTTPStatus.UNPROCESSABLE_ENTITY, "low and high go together, and low is the lower"
        )
    sources = _sources(uid, job, desk)
    tag = f'"{sources.job_key[:32]}-{number}-{low}-{high}"'
    window = None if low is None or high is None else Window(low=low, high=high)
    if _has(request, tag):
        return _unchanged(tag, _kept(job))
    stack = _stack(request, sources)
    return _picture(stack.grey(_index(stack, number), window), tag, _kept(job))


@router.get("/studies/{uid}/slices/{number}/overlay.png", response_class=Response, responses=_PNG)
def get_outlines(
    *,
    uid: Uid,
    number: Number,
    request: Request,
    desk: AtDesk,
    job: OfJob = None,
    style: Style = Style.CONTOUR,
) -> Response:
    """Return what was segmented in a slice, transparent where there is nothing."""
    sources = _sources(uid, job, desk)
    if sources.withdrawn_at is not None:
        msg = f"the result of study {uid} was withdrawn on {sources.withdrawn_at:%Y-%m-%d}"
        raise HTTPException(HTTPStatus.GONE, msg)
    tag = f'"{sources.job_key[:32]}-{number}-{style.value}-{sources.seg is not None}"'
    if _has(request, tag):
        return _unchanged(tag, _ASK)
    stack = _stack(request, sources)
    return _picture(stack.overlay(_index(stack, number), style), tag, _ASK)


def _sources(uid: str, job: int | None, desk: Desk) -> Sources:
    with database.transaction(desk.readers) as session:
        found = slices.sources(uid, job, session=session)
    if found is None:
        what = "no analysis" if job is None else f"no job {job}"
        raise HTTPException(HTTPStatus.NOT_FOUND, f"study {uid} is unknown or has {what}")
    if found.purged_at is not None:
        msg = f"images of study {uid} were purged on {found.purged_at:%Y-%m-%d}"
        raise HTTPException(HTTPStatus.GONE, f"{msg}; scores and reports stay")
    return found


def _stack(request: Request, sources: Sources) -> Stack:
    gallery: Gallery = request.app.state.gallery
    try:
        return gallery.stack(sources)
    except NoPicture as error:
        raise HTTPException(
            HTTPStatus.NOT_FOUND, f"no stack of slices can be made of these images: {error}"
        ) from error


def _index(stack: Stack, number: int) -> int:
    if number > len(stack.sources):
        msg = f"there are {len(stack.sources)} slices, no slice {number}"
        raise HTTPException(HTTPStatus.NOT_FOUND, msg)
    return number - 1


def _has(request: Request, tag: str) -> bool:
    asked = request.headers.get("if-none-match", "")
    return tag in {each.strip().removeprefix("W/") for each in asked.split(",")}


def _kept(job: int | None) -> str:
    """How long the image of a slice may be kept: without a number, another job may speak."""
    return _ASK if job is None else _KEEP


def _headers(tag: str, kept: str) -> dict[str, str]:
    return {"ETag": tag, "Cache-Control": kept}


def _unchanged(tag: str, kept: str) -> Response:
    return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=_headers(tag, kept))


def _picture(data: bytes, tag: str, kept: str) -> Response:
    return Response(data, media_type="image/png", headers=_headers(tag, kept))
