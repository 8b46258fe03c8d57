"""Keeps web pages of other sites from reading or changing anything through a browser."""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from hipscore.api.problems import problem

_SAFE = {"GET", "HEAD", "OPTIONS"}


class SameOrigin:
    """Refuse an unsafe request whose Origin (RFC 6454) is another host than it is sent to.

    Programs send no Origin; browsers always do with such requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 403."""
        if scope["type"] == "http" and scope["method"] not in _SAFE:
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and _host(origin) != headers.get("host"):
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
        if scope["type"] == "http" and "*" not in self._allowed:
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
