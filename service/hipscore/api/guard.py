"""Keeps web pages of other sites from reading or changing anything through a browser."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hipscore.api import access_rules
from hipscore.api.access_rules import SAFE
from hipscore.api.credentials import address, secure
from hipscore.api.problems import problem

_CONNECTIONS = {"http", "websocket"}
#: Nothing but our own files, no inline script or style, in nobody's frame (CSP level 3).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # UIDs stay here; with none, forms would have no Origin
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: a year (RFC 6797); other services of this name are theirs to decide
_TRANSPORT = "max-age=31536000"
#: asked for again and again by machines
_ROUTINE = {"/healthz", "/readyz", "/metrics", "/login.css", "/static/{path:path}"}
_FILES = {"/login.css", "/static/{path:path}"}

log = logging.getLogger(__name__)


class Answers:
    """Give every answer its headers, and the log one line about it.

    The line has the route, the UID of the study and the name of the key: neither query
    strings nor paths as they were sent, which could hold anything.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] not in _CONNECTIONS:
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        asked = access_rules.classify(scope)
        begun, status = time.perf_counter(), 0

        async def complete(message: Message) -> None:
            nonlocal status
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if secure(connection):
                    headers["Strict-Transport-Security"] = _TRANSPORT
                cached = "no-cache" if asked.rule.template in _FILES else "no-store"
                headers.setdefault("Cache-Control", cached)
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await self._app(scope, receive, complete)
        except Exception:
            # what is outside of here would answer without our headers
            if not status and scope["type"] == "http":
                await problem(500, "this is a defect of hipscore; see the log")(
                    scope, receive, complete
                )
            raise
        finally:
            who = getattr(connection.state, "visitor", None)
            log.log(
                logging.DEBUG if asked.rule.template in _ROUTINE else logging.INFO,
                "%s %s%s %d %.0f ms %s %s",
                asked.method if asked.method.isalpha() else "?",
                asked.rule.template if asked.known else "(no route)",
                f" study {asked.study}" if asked.study else "",
                status,
                1000 * (time.perf_counter() - begun),
                (who.name if who is not None else "") or "-",
                address(connection) or "-",
            )


class SameOrigin:
    """Refuse an action or a web-socket that the page of another site asks for.

    Browsers always send Origin (RFC 6454) with those, and newer ones Sec-Fetch-Site; programs
    send neither.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 403."""
        if scope["type"] in _CONNECTIONS and scope.get("method") not in SAFE:
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            foreign = origin is not None and _host(origin) != headers.get("host")
            if foreign or headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
                refusal = problem(403, "this request comes from the web page of another site")
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


class OwnHosts:
    """Refuse a request that is addressed to a name which is not ours.

    A page whose name is made to point to this machine (DNS rebinding) is of the same origin
    as the API to the browser, and could read everything; the name is all that gives it away.
    An address in numbers cannot be rebound and always passes, as does ``localhost``.

    Parameters
    ----------
    app
        What answers the requests that pass.
    allowed
        Further names; ``*`` lets every name pass.
    """

    def __init__(self, app: ASGIApp, *, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = {"localhost", *(name.lower() for name in allowed)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 421 (RFC 9110 15.5.20)."""
        if scope["type"] in _CONNECTIONS and "*" not in self._allowed:
            name = _name(Headers(scope=scope).get("host", ""))
            if name not in self._allowed and not _is_address(name):
                refusal = problem(
                    HTTPStatus.MISDIRECTED_REQUEST,
                    f"{name[:253]!r} is not a name of this service; "
                    "if it should be, add it to HIPSCORE_HTTP_ALLOWED_HOSTS",
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _name(host: str) -> str:
    """Name or address in a Host header (RFC 9110 7.2); empty if there is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
