"""Errors as problem details (RFC 9457), and the only place where HTTP codes are chosen.

A browser that goes somewhere gets the same as a small page.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from hipscore.domain import RESEARCH_USE, Transient
from hipscore.lifecycle import IllegalMove
from hipscore.spool import Corrupt
from hipscore.store.moves import NotFound

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
#: errors of routes whose standard has a body of its own for them
_OTHER_BODIES = {"application/dicom+json", "application/fhir+json"}
#: below these nobody browses, whatever is accepted there
_SERVICES = ("/dicomweb", "/workitems", "/fhir")
_PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)

log = logging.getLogger(__name__)


class InvalidField(BaseModel):
    """One part of a request that was not acceptable."""

    where: str
    text: str


class Problem(BaseModel):
    """Why a request failed (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[InvalidField] = Field(default_factory=list)


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(NotFound, _not_found)
    app.add_exception_handler(IllegalMove, _conflict)
    app.add_exception_handler(Transient, _unavailable)
    app.add_exception_handler(Corrupt, _corrupt)
    app.add_exception_handler(Exception, _defect)


class _Told(JSONResponse):
    """A problem document, or a page that says the same to somebody who looks for pages."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not prefers_page(scope):
            await super().__call__(scope, receive, send)
            return
        kept = {
            name: value
            for name, value in self.headers.items()
            if name not in {"content-type", "content-length"}
        }
        said = Problem.model_validate_json(bytes(self.body))
        page = _page(said, scope)
        await HTMLResponse(page, self.status_code, headers=kept)(scope, receive, send)


def prefers_page(scope: Scope) -> bool:
    """Whether a page is asked for before JSON (RFC 9110 12.5.1), where there are pages."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    if any(path == each or path.startswith(f"{each}/") for each in _SERVICES):
        return False
    wishes = dict.fromkeys(("text/html", "application/json", MEDIA_TYPE), 0.0)
    for each in Headers(scope=scope).get("accept", "").lower().split(","):
        kind, _, rest = each.partition(";")
        if kind.strip() in wishes:
            wishes[kind.strip()] = _quality(rest)
    page = wishes.pop("text/html")
    return page > max(wishes.values())


def _quality(parameters: str) -> float:
    for each in parameters.split(";"):
        name, _, value = each.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _page(said: Problem, scope: Scope) -> str:
    text = said.detail
    if any(each.where == "path.uid" for each in said.errors):
        text = "this address names no study: a UID has nothing but digits and dots"
    elif said.status == HTTPStatus.NOT_FOUND and text == said.title:
        text = "there is no such page"
    return _PAGES.get_template("problem.html").render(
        root=scope.get("root_path", ""),
        title=said.title,
        text=f"{text[:1].upper()}{text[1:]}".rstrip("."),
        research=RESEARCH_USE,
        # under a name that is not ours no link of ours would lead anywhere
        ours=said.status != HTTPStatus.MISDIRECTED_REQUEST,
    )


def problem(
    status: int,
    detail: str,
    *,
    errors: list[InvalidField] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Build the response for one problem: JSON, or a page for a browser that looks for one."""
    body = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors or []
    )
    return _Told(body.model_dump(), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def describe_in(schema: dict[str, Any]) -> None:
    """Make an OpenAPI document show problem documents for every error response."""
    models = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        models.pop(name, None)
    reference = {"$ref": "#/components/schemas/Problem"}
    own = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    models.update(own.pop("$defs"))
    models["Problem"] = own
    for path in schema["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                own_body = _OTHER_BODIES & set(response.get("content", {}))
                if status >= "400" and not own_body:
                    response["content"] = {MEDIA_TYPE: {"schema": reference}}


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class
    headers = dict(error.headers) if error.headers else {}
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods(request))
    return problem(error.status_code, str(error.detail), headers=headers)


def _methods(request: Request) -> list[str]:
    """What the path can be asked for (RFC 9110 15.5.6): of all its routes, not the first alone."""
    routes = request.app.routes
    return [
        method
        for method in _METHODS
        if any(
            each.matches({**request.scope, "method": method})[0] is Match.FULL for each in routes
        )
    ]


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class
    found = [
        InvalidField(where=".".join(str(part) for part in each["loc"]), text=each["msg"])
        for each in error.errors()
    ]
    detail = "; ".join(f"{each.where}: {each.text}" for each in found)
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=found)


def _not_found(_: Request, error: Exception) -> JSONResponse:
    return problem(HTTPStatus.NOT_FOUND, str(error))


def _conflict(_: Request, error: Exception) -> JSONResponse:
    return problem(HTTPStatus.CONFLICT, str(error))


def _unavailable(_: Request, error: Exception) -> JSONResponse:
    log.warning("request not served: %s", error)
    return problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the database or the disk cannot be used right now; try again",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


def _corrupt(_: Request, error: Exception) -> JSONResponse:
    log.error("spool: %s", error)
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the stored bytes are damaged; see the log")


def _defect(_: Request, error: Exception) -> JSONResponse:
    log.error("request failed: %s", type(error).__name__)
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "this is a defect of hipscore; see the log")
