"""Keeps web pages of other sites from making a browser send requests that change something."""

from __future__ import annotations

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


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
