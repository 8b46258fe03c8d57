"""The routes below ``/fhir``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.convertors import StringConvertor, register_url_convertor

from hipscore.api.fhir import bundle, capability, observations, resources
from hipscore.api.fhir.datatypes import Json
from hipscore.api.fhir.kinds import IMAGING, KINDS, OBSERVATIONS, REPORTS, Kind
from hipscore.api.fhir.outcome import MEDIA_TYPE, PATH, SearchError, refusal
from hipscore.api.fhir.search import Pairs, parse
from hipscore.api.shared import AtDesk, Desk
from hipscore.header import is_uid
from hipscore.store import clinical
from hipscore.store import engine as database

_FORM = "application/x-www-form-urlencoded"
_LARGEST_FORM = 64 * 1024  # bytes
_FORMATS = {"json", "application/json", "text/json", MEDIA_TYPE, "application/*", "*/*"}


class _IdConvertor(StringConvertor):
    """Any part of a path but an operation (``_search``), which has a route of its own."""

    regex = "[^_/][^/]*"


register_url_convertor("fhir_id", _IdConvertor())
_Id = Annotated[
    str,
    Path(
        json_schema_extra={"pattern": "^[A-Za-z0-9.-]{1,64}$"},
        description="id of the resource; any other text is answered 404",
    ),
]


def _refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documented refusals; :func:`describe_in` fills in their bodies."""
    return {status: {"description": HTTPStatus(status).phrase} for status in statuses}


def describe_in(schema: Json) -> None:
    """Make an OpenAPI document show OperationOutcomes for the refusals below ``/fhir``."""
    schema.setdefault("components", {}).setdefault("schemas", {})["OperationOutcome"] = _OUTCOME
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/OperationOutcome"}}}
    for path, operations in schema["paths"].items():
        if not path.startswith(f"{PATH}/"):
            continue
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    response["content"] = content


_OUTCOME = {
    "type": "object",
    "required": ["resourceType", "issue"],
    "properties": {
        "resourceType": {"const": "OperationOutcome"},
        "issue": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["severity", "code"],
                "properties": {"severity": {"type": "string"}, "code": {"type": "string"}},
            },
        },
    },
}


def _answered(kind: str, *, version: bool = False) -> dict[int | str, dict[str, Any]]:
    schema = {
        "type": "object",
        "required": ["resourceType"],
        "properties": {"resourceType": {"const": kind}},
    }
    answer: dict[str, Any] = {"description": kind, "content": {MEDIA_TYPE: {"schema": schema}}}
    if version:
        answer["headers"] = {"ETag": {"schema": {"type": "string"}, "required": True}}
    return {200: answer}


router = APIRouter(prefix=PATH, tags=["fhir"], responses=_refused(406, 503))


@router.get("/metadata", response_class=Response, responses=_answered("CapabilityStatement"))
def get_capabilities(request: Request) -> Response:
    """Say what this FHIR server can do."""
    try:
        _negotiate(request, request.query_params.multi_items())
    except SearchError as error:
        return refusal(error.status, error.text, code=error.code)
    return _fhir(capability.statement(_base(request)))


def _parameters(kind: Kind) -> list[Json]:
    """OpenAPI: the parameters of a search by URL."""
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": text,
            "schema": {"type": "string"},
        }
        for name, text in kind.parameters.items()
    ]


def _form(kind: Kind) -> Json:
    """OpenAPI: the same parameters and the patient's identifier, in a form."""
    texts = {**kind.parameters, "patient.identifier": "system|value of the patient's own ID"}
    properties = {name: {"type": "string", "description": it} for name, it in texts.items()}
    return {"content": {_FORM: {"schema": {"type": "object", "properties": properties}}}}


def _offer(kind: Kind) -> None:
    """Add the routes of one type of resource."""
    path, name = f"/{kind.name}", kind.name

    def search_by_url(request: Request, desk: AtDesk) -> Response:
        return _search(kind, request, desk, ())

    async def search_by_form(request: Request, desk: AtDesk) -> Response:
        try:
            form = await _posted(request)
        except SearchError as error:
            return refusal(error.status, error.text, code=error.code)
        return await run_in_threadpool(_search, kind, request, desk, form)

    def read_one(resource_id: _Id, request: Request, desk: AtDesk) -> Response:
        return _read(kind, resource_id, request, desk)

    router.add_api_route(
        path,
        search_by_url,
        name=f"search_{name}",
        summary=f"Search for {name} resources",
        response_class=Response,
        responses={**_answered("Bundle"), **_refused(400)},
        openapi_extra={"parameters": _parameters(kind)},
    )
    router.add_api_route(
        f"{path}/_search",
        search_by_form,
        methods=["POST"],
        name=f"post_search_{name}",
        summary=f"Search for {name} resources by a form, which keeps identifiers out of URLs",
        response_class=Response,
        responses={**_answered("Bundle"), **_refused(400, 403, 413, 415)},
        openapi_extra={"requestBody": _form(kind)},
    )
    router.add_api_route(
        f"{path}/{{resource_id:fhir_id}}",
        read_one,
        name=f"read_{name}",
        summary=f"Return one {name}",
        response_class=Response,
        responses={
            **_answered(name, version=True),
            304: {"description": "the version in If-None-Match is the current one"},
            **_refused(404, 410),
        },
    )


def _search(kind: Kind, request: Request, desk: Desk, form: Pairs) -> Response:
    query = request.query_params.multi_items()
    try:
        _negotiate(request, [*query, *form])
        with database.transaction(desk.readers) as session:
            search = parse(kind, query, form, strict=_strict(request), session=session)
            found = bundle.answer(search, base=_base(request), session=session)
    except SearchError as error:
        return refusal(error.status, error.text, code=error.code)
    return _fhir(found)


async def _posted(request: Request) -> Pairs:
    """Names and values of a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_FORM:
            msg = f"the form is longer than {_LARGEST_FORM} bytes"
            raise SearchError(msg, code="too-long", status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    if body and kind != _FORM:
        msg = f"{kind[:64] or 'nothing'!r} is not the type of a search by POST; send {_FORM}"
        raise SearchError(msg, code="not-supported", status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    try:
        return parse_qsl(body.decode("ascii"), keep_blank_values=True)
    except ValueError:
        msg = "the form is not readable; encode it as percent-escaped UTF-8"
        raise SearchError(msg) from None


def _read(kind: Kind, resource_id: str, request: Request, desk: Desk) -> Response:
    try:
        _negotiate(request, request.query_params.multi_items())
        with database.transaction(desk.readers) as session:
            resource = _FOUND[kind.name](resource_id, _base(request), session)
    except SearchError as error:
        return refusal(error.status, error.text, code=error.code)
    etag = f'W/"{resource["meta"]["versionId"]}"'
    headers = {"ETag": etag}
    if _has(request, etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return _fhir(resource, headers)


def _report(uid: str, base: str, session: Session) -> Json:
    record = clinical.record(uid, session=session) if is_uid(uid) else None
    if record is None or record.stage is None:
        raise _unknown("DiagnosticReport", uid)
    return resources.report(record, base=base)


def _imaging_study(uid: str, base: str, session: Session) -> Json:
    del base
    record = clinical.record(uid, session=session) if is_uid(uid) else None
    if record is None:
        raise _unknown("ImagingStudy", uid)
    return resources.imaging_study(clinical.imaging([record], session=session)[0])


def _observation(resource_id: str, base: str, session: Session) -> Json:
    del base
    key, about = observations.parse_id(resource_id) or ("", "")
    record = clinical.record_of_job(key, session=session) if key else None
    if record is None or record.job is None or record.job.result is None:
        raise _unknown("Observation", resource_id)
    if not record.current and record.job.withdrawn_at is None:
        uid = record.study.study_instance_uid
        msg = f"another analysis speaks for the study now; see DiagnosticReport/{uid}"
        raise SearchError(msg, code="deleted", status=HTTPStatus.GONE)
    if about not in observations.subjects(record):
        raise _unknown("Observation", resource_id)
    return observations.observation(record, about)


_FOUND: dict[str, Callable[[str, str, Session], Json]] = {
    REPORTS.name: _report,
    OBSERVATIONS.name: _observation,
    IMAGING.name: _imaging_study,
}
for _kind in KINDS:
    _offer(_kind)


def _unknown(name: str, resource_id: str) -> SearchError:
    msg = f"there is no {name}/{resource_id[:64]}"
    return SearchError(msg, code="not-found", status=HTTPStatus.NOT_FOUND)


def _fhir(resource: Json, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(resource, allow_nan=False)
    return Response(body, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _strict(request: Request) -> bool:
    """Whether unknown parameters are to be refused (FHIR 3.1.1.1.2, RFC 7240)."""
    asked = ",".join(request.headers.getlist("prefer")).replace(";", ",").replace(" ", "")
    return "handling=strict" in asked.lower().split(",")


def _negotiate(request: Request, pairs: Pairs) -> None:
    """Refuse what wants another format than JSON."""
    wanted = [value for name, value in pairs if name == "_format" and value]
    if not wanted:
        accepted = ",".join(request.headers.getlist("accept")).lower().split(",")
        wanted = [each.partition(";")[0].strip() for each in accepted]
        wanted = [each for each in wanted if each]
    if wanted and not any(each.partition(";")[0].strip() in _FORMATS for each in wanted):
        msg = f"only {MEDIA_TYPE} is offered"
        raise SearchError(msg, code="not-supported", status=HTTPStatus.NOT_ACCEPTABLE)


def _has(request: Request, etag: str) -> bool:
    """Whether the client has this version (If-None-Match, RFC 9110 13.1.2, weak comparison)."""
    said = ",".join(request.headers.getlist("if-none-match"))
    tags = {each.strip().removeprefix("W/") for each in said.split(",")}
    return "*" in tags or etag.removeprefix("W/") in tags
