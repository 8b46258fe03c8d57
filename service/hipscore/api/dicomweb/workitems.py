"""The worklist (UPS-RS, PS3.18 11): every analysis of ours, and what others put there."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from hipscore.api.dicomweb.exchange import (
    BODY,
    DICOM_JSON,
    ITEMS,
    Body,
    OptionalBody,
    WorkitemUid,
    bad,
    base,
    checked_uid,
    failure,
    negotiate,
    uid_in_query,
    warning,
)
from hipscore.api.dicomweb.query import PARAMETERS, parse
from hipscore.api.shared import AtDesk
from hipscore.header import is_uid
from hipscore.procedure import matching, rules
from hipscore.procedure.dataset import Attributes, Malformed, value
from hipscore.procedure.reports import FILTERED, GLOBAL
from hipscore.procedure.states import State, Status
from hipscore.store import engine as database
from hipscore.store import procedures, workitems
from hipscore.store.moves import NotFound

#: what HTTP has instead of the AE title of who asks
REQUESTER = "UPS-RS"
_TRANSACTION = ("transaction-uid", "transaction", "TransactionUID")
_INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."
_INCONSISTENT_CHANGE = (
    "The submitted request is inconsistent with the current state of the Workitem."
)
_UNCLAIMED = "The target URI did not reference a claimed Workitem."

_FAILS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the request is not one, or lacks what it needs"},
    503: {"description": "the database cannot be used right now"},
}
_ABOUT_ONE: dict[int | str, dict[str, Any]] = {404: {"description": "no such work item"}, **_FAILS}
_WITH_BODY: dict[int | str, dict[str, Any]] = {
    413: {"description": "the body is too large"},
    415: {"description": f"the body is not {DICOM_JSON}"},
}
_CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"description": "not possible in this state, or performed by hipscore itself; see Warning"}
}
_NOT_ACCEPTABLE: dict[int | str, dict[str, Any]] = {406: {"description": f"only as {DICOM_JSON}"}}

router = APIRouter(tags=["UPS-RS"])


class _Said(NamedTuple):
    """How a status of the standard is told over HTTP."""

    http: HTTPStatus
    detail: str
    warning: str


_OVER = _Said(HTTPStatus.CONFLICT, "the work item has ended", _INCONSISTENT)
#: PS3.18 11.7.3
_STATE_CHANGE: Mapping[Status, _Said] = {
    Status.ALREADY_CANCELED: _Said(
        HTTPStatus.OK, "", "The UPS is already in the requested state of CANCELED."
    ),
    Status.ALREADY_COMPLETED: _Said(
        HTTPStatus.OK, "", "The UPS is already in the requested state of COMPLETED."
    ),
    Status.NO_LONGER_UPDATED: _OVER,
    Status.WRONG_TRANSACTION: _Said(
        HTTPStatus.BAD_REQUEST,
        "somebody else holds the work item under another Transaction UID",
        "The Transaction UID is incorrect.",
    ),
    Status.ALREADY_IN_PROGRESS: _Said(
        HTTPStatus.CONFLICT, "the work item is IN PROGRESS already", _INCONSISTENT
    ),
    Status.ONLY_CREATED_SCHEDULED: _Said(
        HTTPStatus.BAD_REQUEST, "a work item becomes SCHEDULED only when created", _INCONSISTENT
    ),
    Status.FINAL_STATE_UNMET: _Said(
        HTTPStatus.CONFLICT, "the work item lacks what this state needs", _INCONSISTENT
    ),
    Status.NOT_IN_PROGRESS: _Said(
        HTTPStatus.CONFLICT, "the work item is not IN PROGRESS; claim it first", _INCONSISTENT
    ),
}
_NO_TRANSACTION = _Said(
    HTTPStatus.BAD_REQUEST,
    "name the Transaction UID under which the work item is claimed",
    "The Transaction UID is missing.",
)
#: PS3.18 11.6.3: one that has ended is 400
_UPDATE: Mapping[Status, _Said] = {
    Status.NO_LONGER_UPDATED: _Said(
        HTTPStatus.BAD_REQUEST, "the work item has ended", _INCONSISTENT_CHANGE
    ),
    Status.WRONG_TRANSACTION: _STATE_CHANGE[Status.WRONG_TRANSACTION],
    Status.NOT_IN_PROGRESS: _Said(
        HTTPStatus.CONFLICT, "nobody has claimed it: send no Transaction UID", _UNCLAIMED
    ),
}
#: PS3.18 11.8.3
_CANCEL_REQUEST: Mapping[Status, _Said] = {
    Status.ALREADY_CANCELED: _STATE_CHANGE[Status.ALREADY_CANCELED],
    Status.COMPLETED_BEFORE: _Said(
        HTTPStatus.CONFLICT, "the work item is COMPLETED", _INCONSISTENT
    ),
}


@router.post(
    "/dicomweb/workitems",
    status_code=HTTPStatus.CREATED,
    response_class=Response,
    responses={
        201: {"headers": {"Location": {"schema": {"type": "string"}}}, "content": {}},
        409: {"description": "there is a work item of this UID"},
        **_FAILS,
        **_WITH_BODY,
    },
    openapi_extra=BODY,
)
def create_workitem(given: Body, request: Request, desk: AtDesk) -> Response:
    """Create a work item, SCHEDULED.

    Its UID comes bare as the query (`?1.2.3`), as `?workitem=`, or in the body; without any it
    gets one. An item whose Scheduled Workitem Code is (HIP_SCORE, 99HIPSCORE) and whose Input
    Information Sequence names a series or study orders that analysis.
    """
    uid = _uid_of_new(given, request)
    now = datetime.now(UTC)
    try:
        attributes, completed = rules.created(given, uid, now=now)
        with database.transaction(desk.writers) as session:
            procedures.create(uid, attributes, now=now, session=session)
    except Malformed as error:
        raise bad(error) from None
    except procedures.Exists as error:
        return failure(request, HTTPStatus.CONFLICT, str(error), f"{error}.")
    headers = {"Location": f"{base(request)}/workitems/{uid}"}
    if completed:
        headers |= warning(request, "The Workitem was created with modifications.")
    return Response(status_code=HTTPStatus.CREATED, headers=headers)


@router.get(
    "/dicomweb/workitems",
    response_class=Response,
    responses={
        200: {"description": "what matches, oldest first", **ITEMS},
        204: {"description": "nothing matches"},
        **_FAILS,
        **_NOT_ACCEPTABLE,
    },
    openapi_extra={"parameters": PARAMETERS},
)
def search_workitems(request: Request, desk: AtDesk) -> Response:
    """Search work items by their attributes, as QIDO-RS does."""
    negotiate(request)
    try:
        asked = parse(request.query_params.multi_items())
    except Malformed as error:
        raise bad(error) from None
    with database.transaction(desk.readers) as session:
        found = workitems.search(
            asked.keys, limit=asked.limit, offset=asked.offset, session=session
        )
    told = []
    if asked.fuzzy:
        told.append(
            "The fuzzymatching parameter is not supported. "
            "Only literal matching has been performed."
        )
    if not found.items:
        return Response(
            status_code=HTTPStatus.NO_CONTENT,
            headers=warning(request, told[0]) if told else None,
        )
    if found.more:
        told.append(f"There are {found.more} additional results that can be requested")
    return JSONResponse(
        [matching.shown(each, asked.fields) for each in found.items],
        media_type=DICOM_JSON,
        headers=_warnings(request, told),
    )


@router.get(
    "/dicomweb/workitems/{workitem}",
    response_class=Response,
    responses={
        200: {"description": "an array of the one work item", **ITEMS},
        **_ABOUT_ONE,
        **_NOT_ACCEPTABLE,
    },
)
def retrieve_workitem(workitem: WorkitemUid, request: Request, desk: AtDesk) -> Response:
    """Retrieve a work item, without its Transaction UID."""
    negotiate(request)
    uid = checked_uid(workitem)
    with database.transaction(desk.readers) as session:
        item = procedures.retrieve(uid, session=session)
    return JSONResponse([item], media_type=DICOM_JSON)


@router.post(
    "/dicomweb/workitems/{workitem}",
    response_class=Response,
    responses={
        200: {"description": "updated", "content": {}},
        **_ABOUT_ONE,
        **_WITH_BODY,
        **_CONFLICT,
    },
    openapi_extra={
        **BODY,
        "parameters": [
            {
                "name": "transaction-uid",
                "in": "query",
                "required": False,
                "description": "Transaction UID; needed while IN PROGRESS; may also stand bare",
                "schema": {"type": "string"},
            }
        ],
    },
)
def update_workitem(
    workitem: WorkitemUid, changes: Body, request: Request, desk: AtDesk
) -> Response:
    """Set attributes of a work item; sequences are replaced as a whole."""
    uid = checked_uid(workitem)
    _refuse_worklists(uid)
    transaction = uid_in_query(request, _TRANSACTION) or value(changes, "TransactionUID")
    try:
        with database.transaction(desk.writers) as session:
            answer = procedures.change(
                uid,
                changes,
                transaction_uid=transaction,
                now=datetime.now(UTC),
                session=session,
            )
    except Malformed as error:
        raise bad(error) from None
    except procedures.PerformedHere as error:
        return _performed_here(request, error)
    return _answer(request, answer, _UPDATE, named=transaction is not None)


@router.put(
    "/dicomweb/workitems/{workitem}/state",
    response_class=Response,
    responses={
        200: {"description": "done, or so before: see Warning", "content": {}},
        **_ABOUT_ONE,
        **_WITH_BODY,
        **_CONFLICT,
    },
    openapi_extra=BODY,
)
def change_workitem_state(
    workitem: WorkitemUid, wanted: Body, request: Request, desk: AtDesk
) -> Response:
    """Claim (IN PROGRESS), complete or cancel a work item.

    The body has Procedure Step State (00741000) and Transaction UID (00081195).
    """
    uid = checked_uid(workitem)
    _refuse_worklists(uid)
    text = value(wanted, "ProcedureStepState")
    if text not in set(State):
        raise bad(f"Procedure Step State (0074,1000) is one of {', '.join(State)}")
    transaction = uid_in_query(request, _TRANSACTION) or value(wanted, "TransactionUID")
    try:
        with database.transaction(desk.writers) as session:
            answer = procedures.change_state(
                uid,
                State(text),
                transaction_uid=transaction,
                now=datetime.now(UTC),
                session=session,
            )
    except procedures.PerformedHere as error:
        return _performed_here(request, error)
    return _answer(request, answer, _STATE_CHANGE, named=transaction is not None)


@router.post(
    "/dicomweb/workitems/{workitem}/cancelrequest",
    status_code=HTTPStatus.ACCEPTED,
    response_class=Response,
    responses={
        200: {"description": "it is CANCELED already", "content": {}},
        202: {"description": "canceled, or its performer is told", "content": {}},
        **_ABOUT_ONE,
        **_WITH_BODY,
        **_CONFLICT,
    },
    openapi_extra={"requestBody": {**BODY["requestBody"], "required": False}},
)
def request_cancellation(
    workitem: WorkitemUid, reasons: OptionalBody, request: Request, desk: AtDesk
) -> Response:
    """Ask to cancel a work item; an analysis of ours that is not done yet is canceled."""
    uid = checked_uid(workitem)
    _refuse_worklists(uid)
    with database.transaction(desk.writers) as session:
        answer = procedures.request_cancel(
            uid, reasons, requester=REQUESTER, now=datetime.now(UTC), session=session
        )
    if answer.status is Status.SUCCESS:
        return Response(status_code=HTTPStatus.ACCEPTED)
    return _answer(request, answer, _CANCEL_REQUEST, named=True)


def _uid_of_new(given: Attributes, request: Request) -> str:
    named = uid_in_query(request, ("workitem", "AffectedSOPInstanceUID"))
    inside = value(given, "SOPInstanceUID") or value(given, "AffectedSOPInstanceUID")
    if named and inside and named != inside:
        raise bad("query and body name different work items")
    uid = str(named or inside or f"2.25.{uuid4().int}")
    if not is_uid(uid) or uid in {GLOBAL, FILTERED}:
        raise bad("this is no UID that a work item can have")
    return uid


def _refuse_worklists(uid: str) -> None:
    if uid in {GLOBAL, FILTERED}:
        msg = "the worklist itself is no work item"
        raise NotFound(msg)


def _answer(
    request: Request, answer: procedures.Answer, said: Mapping[Status, _Said], *, named: bool
) -> Response:
    if answer.status is Status.SUCCESS:
        return Response(status_code=HTTPStatus.OK)
    told = said[answer.status]
    if answer.status is Status.WRONG_TRANSACTION and not named:
        told = _NO_TRANSACTION
    if told.http is HTTPStatus.OK:
        return Response(status_code=HTTPStatus.OK, headers=warning(request, told.warning))
    lacks = f": {', '.join(answer.unmet)}" if answer.unmet else ""
    return failure(request, told.http, f"{told.detail}{lacks}", told.warning)


def _performed_here(request: Request, error: procedures.PerformedHere) -> Response:
    return failure(request, HTTPStatus.CONFLICT, str(error), f"{error}.")


def _warnings(request: Request, told: list[str]) -> dict[str, str]:
    each = (warning(request, text)["Warning"] for text in told)
    return {"Warning": ", ".join(each)} if told else {}
