"""Who may look and who may act: every request passes here before it reaches a route."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, quote

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hipscore.api import access_rules
from hipscore.api.access_rules import SAFE, Request
from hipscore.api.credentials import LOCAL, NOBODY, Credentials, Refused, Visitor, address
from hipscore.api.problems import RETRY_SECONDS, problem
from hipscore.api.shared import Desk
from hipscore.api.trail import Trail, Unrecorded
from hipscore.domain import Transient
from hipscore.store.audit import Actor

__all__ = ["Access", "Visitor", "read_form"]

#: a form that is longer than this is none of ours
FORM_BYTES = 64 * 1024
_FORM = "application/x-www-form-urlencoded"
_PROXIED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto")
_LATER = {"Retry-After": str(RETRY_SECONDS)}

log = logging.getLogger(__name__)


class TooLong(Exception):
    """A form is longer than any of ours."""


class Access:
    """Ask for a key where one is demanded, keep to the roles, and record what is looked at.

    Sets ``request.state.visitor``. A route that finds out only later which study it shows
    says so in ``request.state.study_instance_uid``.
    """

    def __init__(self, app: ASGIApp, *, desk: Desk, credentials: Credentials, trail: Trail) -> None:
        self._app = app
        self._desk = desk
        self._credentials = credentials
        self._trail = trail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 401, 403, 429 or 503."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        request = access_rules.classify(scope)
        connection.state.visitor = NOBODY
        if request.rule.role is None:
            await self._app(scope, receive, send)
            return
        found = await self._who(connection, request)
        if isinstance(found, Response):
            await found(scope, receive, send)
            return
        connection.state.visitor = found
        actor = Actor(who=found.name, role=found.role.value, address=address(connection))
        refusal = await self._role(request, found, actor)
        if refusal is None and found.session and request.unsafe:
            receive, refusal = await _csrf(connection, receive, found)
        if refusal is not None:
            await refusal(scope, receive, send)
        elif request.rule.action is None:
            await self._app(scope, receive, send)
        elif request.looks:
            await self._looking(request, actor, scope, receive, send)
        else:
            await self._acting(request, actor, scope, receive, send)

    async def _who(self, connection: HTTPConnection, request: Request) -> Visitor | Response:
        """Whoever asks, or what they are told instead."""
        settings = self._desk.settings
        if not settings.keys_demanded:
            if settings.access == "auto" and any(name in connection.headers for name in _PROXIED):
                return problem(
                    403,
                    "this came through a proxy, and no key is demanded here: set "
                    "HIPSCORE_HTTP_PROXIES (or HIPSCORE_ACCESS) for the API",
                )
            return LOCAL
        try:
            found = await run_in_threadpool(self._credentials.visitor, connection)
        except Refused as refused:
            return refusal(refused)
        except (Transient, SQLAlchemyError) as error:
            log.warning("a key cannot be checked: %s", type(error).__name__)
            return problem(503, "the key cannot be checked right now; try again", headers=_LATER)
        if found is not None:
            return found
        page = request.method != access_rules.SOCKET and wants_page(connection)
        return to_login(connection) if page else refusal(Refused("a key is demanded here"))

    async def _role(self, request: Request, who: Visitor, actor: Actor) -> Response | None:
        """What somebody is told whose role is not enough."""
        needed = request.rule.role
        if needed is None or who.role.may(needed):
            return None
        detail = {"method": _short(request.method), "route": request.rule.template}
        try:
            await run_in_threadpool(
                self._trail.act, actor, "refused", study=request.study, detail=detail
            )
        except Unrecorded:
            log.warning("the refusal of %s is not recorded", who.name)
        return problem(403, f"this is for the role {needed}; {who.name} is {who.role}")

    async def _looking(
        self, request: Request, actor: Actor, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer, but record it before the first byte of what is shown goes out."""
        dropped = False

        async def recorded(message: Message) -> None:
            nonlocal dropped
            if dropped:
                return
            if _shows(message):
                seen = scope["state"].get("study_instance_uid")
                try:
                    await run_in_threadpool(
                        self._trail.look,
                        actor,
                        str(request.rule.action),
                        study=request.study or seen,
                        detail=request.detail,
                    )
                except Unrecorded:
                    dropped = True
                    await _unrecorded(scope, receive, send)
                    return
            await send(message)

        await self._app(scope, receive, recorded)

    async def _acting(
        self, request: Request, actor: Actor, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Record it, then let it be done; if it was not done after all, record that as well."""

        async def row(detail: dict[str, object]) -> None:
            await run_in_threadpool(
                self._trail.act,
                actor,
                str(request.rule.action),
                study=request.study,
                detail={**request.detail, **detail},
            )

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                try:
                    await row({"not_done": message["status"]})
                except Unrecorded:
                    log.warning("that %s was not done is not recorded", request.rule.action)
            await send(message)

        extra: dict[str, object] = {}
        if not request.known:
            extra["method"] = _short(request.method)
        try:
            await row(extra)
        except Unrecorded:
            await _unrecorded(scope, receive, send)
            return
        await self._app(scope, receive, watched)


def refusal(refused: Refused) -> Response:
    """Answer to a key that opens nothing, or to none."""
    if refused.wait_seconds is not None:
        return problem(429, str(refused), headers={"Retry-After": str(refused.wait_seconds)})
    # Basic is understood but not offered: a browser would ask for a password by itself, and
    # send it along with whatever page of another site makes it ask for.
    challenge = {"WWW-Authenticate": 'Bearer realm="hipscore"'}
    return problem(401, f"{refused}; see docs/security.md", headers=challenge)


def wants_page(connection: HTTPConnection) -> bool:
    """Whether a person is behind it: a browser that goes somewhere, not a program."""
    return "text/html" in connection.headers.get("accept", "").lower()


def to_login(connection: HTTPConnection) -> Response:
    """Send a browser to the login page, and from there back to where it wanted to go."""
    scope = connection.scope
    root = scope.get("root_path", "")
    if scope["method"] in SAFE:
        raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        query: bytes = scope["query_string"]
        wanted = raw + (b"?" + query if query else b"")
    else:
        wanted = f"{root}/".encode()  # what was to be done cannot be done by going there
    return RedirectResponse(f"{root}/login?next={quote(wanted, safe='/')}", 303)


async def read_form(receive: Receive) -> tuple[dict[str, str], bytes]:
    """Read a form, each field once, and its bytes.

    Raises
    ------
    TooLong
        If there is more of it than in any form of ours.
    """
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return {}, b""
        body += message.get("body", b"")
        if len(body) > FORM_BYTES:
            raise TooLong
        if not message.get("more_body", False):
            break
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        fields = {}
    return {name: values[0] for name, values in fields.items()}, body


async def _csrf(
    connection: HTTPConnection, receive: Receive, who: Visitor
) -> tuple[Receive, Response | None]:
    """What an action of a logged-in browser gets that does not come from a page of ours."""
    shown = connection.headers.get("x-csrf-token")
    if shown is None and connection.headers.get("content-type", "").startswith(_FORM):
        try:
            fields, body = await read_form(receive)
        except TooLong:
            return receive, problem(413, f"a form of ours has at most {FORM_BYTES} bytes")
        shown, receive = fields.get("csrf"), _again(body, receive)
    if shown is not None and hmac.compare_digest(shown.encode(), who.csrf.encode()):
        return receive, None
    return receive, problem(
        403, "this does not come from a page of hipscore that is still in force; load it again"
    )


def _again(body: bytes, receive: Receive) -> Receive:
    """A channel that gives once more what was read, then what follows."""
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _shows(message: Message) -> bool:
    if message["type"] == "http.response.start":
        return bool(message["status"] < 400)
    return bool(message["type"] == "websocket.accept")


def _short(method: str) -> str:
    return method if method.isalpha() and len(method) <= 16 else "?"


async def _unrecorded(scope: Scope, receive: Receive, send: Send) -> None:
    answer: Callable[[Scope, Receive, Send], Awaitable[None]] = problem(
        503,
        "the audit log cannot be written, and nothing is shown or done without it; try again",
        headers=_LATER,
    )
    await answer(scope, receive, send)
