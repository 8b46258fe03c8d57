"""Store Transaction (STOW-RS, PS3.18 10.5): images by HTTP, with the promises of C-STORE.

An object is named in Referenced SOP Sequence only when its bytes are fsynced in the spool and
its row is committed. One request is one visit, as an association is: when it ends, the series
it proves complete are closed. One that breaks off proves nothing; what came whole is kept, and
nothing of what did not.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydicom.dataset import Dataset
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from hipscore.api.dicomweb.intake import CALLING_AET, Intake, Stored, Visit
from hipscore.api.dicomweb.multipart import MalformedBody, parse_content_type, parts
from hipscore.api.problems import RETRY_SECONDS, problem
from hipscore.api.shared import COMMON, AtDesk, Desk, Uid
from hipscore.keeping import Bringer

DICOM_JSON = "application/dicom+json"

_ACCEPTED = {"*/*", "application/*", DICOM_JSON, "application/json"}
_BODY = {
    "required": True,
    "content": {
        "multipart/related": {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": 'type="application/dicom": one DICOM file (PS3.10) in each part',
            }
        }
    },
}
_ANSWER: dict[str, Any] = {
    "content": {
        DICOM_JSON: {
            "schema": {
                "type": "object",
                "description": "Store Instances Response (PS3.18 10.5.3) in the DICOM JSON Model: "
                "ReferencedSOPSequence (00081199) with what is kept, durably, FailedSOPSequence "
                "(00081198) and OtherFailuresSequence (0008119A) with what is not",
            }
        }
    }
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "every object is kept", **_ANSWER},
    202: {"description": "some are kept, or with a warning; the answer says which", **_ANSWER},
    400: {"description": "the body is not multipart/related, or is cut off"},
    406: {"description": f"the answer is only there as {DICOM_JSON}"},
    408: {"description": "the body came too slowly"},
    409: {"description": "none is kept, and none will be", **_ANSWER},
    415: {"description": 'only multipart/related; type="application/dicom" is taken'},
    **COMMON,
    503: {"description": "no room or no database now: send all of it again"},
}

router = APIRouter(tags=["DICOMweb"])


@router.post(
    "/dicomweb/studies",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra={"requestBody": _BODY},
)
async def store_instances(request: Request, desk: AtDesk) -> Response:
    """Store MR images of any studies (STOW-RS)."""
    return await _store(request, desk, study=None)


@router.post(
    "/dicomweb/studies/{uid}",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra={"requestBody": _BODY},
)
async def store_instances_of_study(uid: Uid, request: Request, desk: AtDesk) -> Response:
    """Store MR images of this study (STOW-RS); those of another one are not kept."""
    return await _store(request, desk, study=uid)


async def _store(request: Request, desk: Desk, *, study: str | None) -> Response:
    boundary = _boundary(request)
    _negotiate(request)
    intake = _intake(request, desk)
    with intake.place() as free:
        if not free:
            return _later("too many requests store objects at this moment")
        visit = Visit(
            bringer=Bringer(
                calling_aet=CALLING_AET,
                called_aet=desk.settings.ae_title,
                peer=request.client.host if request.client else "",
                visit=uuid.uuid4().hex,
            ),
            study=study,
        )
        whole = False
        try:
            refused = await _receive(request, intake, visit, boundary, desk)
            whole = refused is None
        finally:
            if not whole:
                await run_in_threadpool(intake.broke, visit)
    answer = refused or _answer(visit.stored)
    if whole:  # what is kept is kept: the sender need not wait for what follows from it
        answer.background = BackgroundTask(intake.end, visit)
    return answer


async def _receive(
    request: Request, intake: Intake, visit: Visit, boundary: str, desk: Desk
) -> Response | None:
    """Take the objects as they come; an answer where the body does not come to its end."""
    settings, largest = desk.settings, intake.keeper.largest
    try:
        async with asyncio.timeout(settings.association_seconds):
            body = _unhurried(request.stream(), settings.idle_seconds)
            async for part in parts(body, boundary=boundary, largest=largest):
                await run_in_threadpool(intake.take, part, visit)
    except MalformedBody as error:
        return problem(HTTPStatus.BAD_REQUEST, f"{error}; {_unanswered(visit)}")
    except ClientDisconnect:
        return problem(HTTPStatus.BAD_REQUEST, "the connection ended before the body did")
    except TimeoutError:
        text = f"the body came too slowly; {_unanswered(visit)}"
        return problem(HTTPStatus.REQUEST_TIMEOUT, text, headers={"Connection": "close"})
    if not visit.stored:
        return problem(HTTPStatus.BAD_REQUEST, "the body holds no object")
    return None


async def _unhurried(chunks: AsyncIterator[bytes], idle_s: float) -> AsyncIterator[bytes]:
    """The chunks; TimeoutError when none comes for so long."""
    coming = aiter(chunks)
    while True:
        try:
            async with asyncio.timeout(idle_s):
                chunk = await anext(coming)
        except StopAsyncIteration:
            return
        yield chunk


def _unanswered(visit: Visit) -> str:
    kept = sum(map(len, visit.images.values()))
    return f"{kept} objects before that are kept" if kept else "nothing of it is kept"


def _boundary(request: Request) -> str:
    """Boundary of the body. Raises HTTPException for any other kind of body."""
    kind, options = parse_content_type(request.headers.get("content-type"))
    root = options.get("type", "application/dicom").lower()
    if kind != "multipart/related" or root != "application/dicom":
        text = 'send multipart/related; type="application/dicom"'
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send it without Content-Encoding")
    boundary = options.get("boundary", "")
    if not boundary:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the Content-Type has no boundary")
    return boundary


def _negotiate(request: Request) -> None:
    """Raise HTTPException if the answer would be of no use (PS3.18 8.7.4)."""
    wanted = {
        parse_content_type(each.strip())[0]
        for value in request.headers.getlist("accept")
        for each in value.split(",")
    } - {""}
    if wanted and not wanted & _ACCEPTED:
        text = f"the answer is only there as {DICOM_JSON}"
        raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, text)


def _intake(request: Request, desk: Desk) -> Intake:
    """The one of this application, made for its first request."""
    state = request.app.state
    if not hasattr(state, "intake"):  # no await between here and there: one thread, no race
        state.intake = Intake(desk)
    intake: Intake = state.intake
    return intake


def _answer(stored: list[Stored]) -> Response:
    """Status and payload of the response (PS3.18 10.5.3)."""
    kept = [each for each in stored if each.failure is None]
    if not kept and all(each.passing for each in stored):
        return _later("no room, or no database, for any of the objects now; send them again")
    if not kept:
        status = HTTPStatus.CONFLICT
    elif len(kept) < len(stored) or any(each.warning is not None for each in kept):
        status = HTTPStatus.ACCEPTED
    else:
        status = HTTPStatus.OK
    return JSONResponse(_payload(stored), status_code=status, media_type=DICOM_JSON)


def _payload(stored: list[Stored]) -> dict[str, Any]:
    """Store Instances Response Module; objects cannot be retrieved, so there is no URL."""
    answer = Dataset()
    answer.RetrieveURL = ""  # type 2
    kept = [_item(each) for each in stored if each.failure is None]
    lost = [each for each in stored if each.failure is not None]
    failed = [_item(each) for each in lost if each.sop_instance_uid]
    other = [_item(each) for each in lost if not each.sop_instance_uid]
    if kept:
        answer.ReferencedSOPSequence = kept
    if failed:
        answer.FailedSOPSequence = failed
    if other:
        answer.OtherFailuresSequence = other
    document: dict[str, Any] = answer.to_json_dict()
    return document


def _item(stored: Stored) -> Dataset:
    item = Dataset()
    if stored.sop_instance_uid:
        item.ReferencedSOPClassUID = stored.sop_class_uid
        item.ReferencedSOPInstanceUID = stored.sop_instance_uid
    if stored.failure is not None:
        item.FailureReason = stored.failure
        return item
    item.RetrieveURL = ""
    if stored.warning is not None:
        item.WarningReason = stored.warning
    return item


def _later(text: str) -> Response:
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, text, headers=headers)
