"""OperationOutcome, and every error below ``/fhir`` as one, wherever it arises."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hipscore.api import problems
from hipscore.api.fhir.datatypes import Json, line

MEDIA_TYPE = "application/fhir+json"
PATH = "/fhir"

#: IssueType for each HTTP status; the rest of 4xx is ``invalid``, of 5xx ``exception``
_ISSUES = {
    401: "login",
    403: "forbidden",
    404: "not-found",
    405: "not-supported",
    406: "not-supported",
    409: "conflict",
    410: "deleted",
    413: "too-long",
    415: "not-supported",
    421: "security",
    429: "throttled",
    503: "transient",
}


class SearchError(Exception):
    """A search that cannot be answered as it was meant. ``code`` is an IssueType."""

    def __init__(
        self, text: str, *, code: str = "invalid", status: int = HTTPStatus.BAD_REQUEST
    ) -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.status = status


def issue(text: str, *, code: str, severity: str = "error") -> Json:
    """One issue of an OperationOutcome."""
    return {"severity": severity, "code": code, "diagnostics": line(text) or "no details"}


def outcome(*issues: Json) -> Json:
    """OperationOutcome of these issues."""
    return {"resourceType": "OperationOutcome", "issue": list(issues)}


def refusal(
    status: int, text: str, *, code: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """The answer to a request that is not served."""
    body = outcome(issue(text, code=code or _issue_type(status)))
    return Response(json.dumps(body), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def _issue_type(status: int) -> str:
    return _ISSUES.get(status, "invalid" if status < 500 else "exception")


class Outcomes:
    """Turns problem documents (RFC 9457) below ``/fhir`` into OperationOutcomes.

    The outermost of the middlewares: guards, access control and the handlers of the
    application all answer with problem documents.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its answer."""
        if scope["type"] != "http" or not _ours(scope):
            await self._app(scope, receive, send)
            return
        await self._app(scope, receive, _Rewriter(send))


class _Rewriter:
    """Sends an answer on; a problem document as OperationOutcome, everything else as it is."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            if headers.get("content-type", "").startswith(problems.MEDIA_TYPE):
                self._head = message
                return
        if self._head is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            await self._translated(self._head)

    async def _translated(self, head: Message) -> None:
        body = _translate(head["status"], self._body)
        headers = MutableHeaders(raw=list(head["headers"]))
        headers["content-type"] = MEDIA_TYPE
        headers["content-length"] = str(len(body))
        await self._send({**head, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})


def _translate(status: int, body: bytes) -> bytes:
    if not body:  # to a HEAD request
        return body
    said: dict[str, Any] = json.loads(body)
    text = said.get("detail") or said.get("title") or ""
    return json.dumps(outcome(issue(str(text), code=_issue_type(status)))).encode()


def _ours(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path == PATH or path.startswith(f"{PATH}/")
