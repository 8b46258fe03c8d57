"""The login page: a key goes in, a cookie comes out."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool

from hipscore.api.access import TooLong, read_form
from hipscore.api.credentials import Credentials, Refused, address, cookie_name, secure
from hipscore.api.problems import problem
from hipscore.api.shared import AtDesk, Desk
from hipscore.domain import RESEARCH_USE
from hipscore.store import access, audit
from hipscore.store import engine as database
from hipscore.store.access import Holder

router = APIRouter(include_in_schema=False)

_HERE = Path(__file__).parent
_PAGES = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
_LONGEST_PATH = 2000


@router.get("/login")
def show_login(
    request: Request, desk: AtDesk, following: Annotated[str, Query(alias="next")] = ""
) -> Response:
    """Ask for a key."""
    root = request.scope.get("root_path", "")
    following = local(following, root)
    if not desk.settings.keys_demanded:
        return RedirectResponse(following, HTTPStatus.SEE_OTHER)
    return _page(root, following)


@router.post("/login")
async def log_in(request: Request, desk: AtDesk) -> Response:
    """Take a key, and give the browser a session of its own for it.

    The form is read here and not by the framework, which would take one of any length from
    anybody.
    """
    root = request.scope.get("root_path", "")
    try:
        fields, _ = await read_form(request.receive)
    except TooLong:
        return problem(413, "a key is shorter")
    following = local(fields.get("next", ""), root)
    if not desk.settings.keys_demanded:
        return RedirectResponse(following, HTTPStatus.SEE_OTHER)
    credentials: Credentials = request.app.state.credentials
    try:
        who = await run_in_threadpool(
            credentials.check, fields.get("key", "").strip(), address(request)
        )
    except Refused as refused:
        wait = refused.wait_seconds
        status = HTTPStatus.UNAUTHORIZED if wait is None else HTTPStatus.TOO_MANY_REQUESTS
        text = f"{refused}" if wait is None else f"{refused}; wait {wait} s"
        return _page(root, following, wrong=f"{text[0].upper()}{text[1:]}.", status=status)
    token = await run_in_threadpool(_open, who, request, desk)
    answer = RedirectResponse(following, HTTPStatus.SEE_OTHER)
    answer.set_cookie(
        cookie_name(desk, request),
        token,
        max_age=int(access.SESSION_LIFE.total_seconds()),
        path="/",
        secure=secure(request),
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post("/logout")
def log_out(request: Request, desk: AtDesk) -> Response:
    """End the session of this browser."""
    root = request.scope.get("root_path", "")
    name = cookie_name(desk, request)
    visitor = request.state.visitor
    if visitor.session:
        actor = audit.Actor(who=visitor.name, role=visitor.role, address=address(request))
        with database.transaction(desk.writers) as session:
            access.close_session(request.cookies[name], session=session)
            audit.append(actor, "logout", now=datetime.now(UTC), session=session)
    answer = RedirectResponse(f"{root}/login", HTTPStatus.SEE_OTHER)
    answer.delete_cookie(name, path="/", secure=secure(request), httponly=True, samesite="strict")
    return answer


@router.get("/login.css")
def get_style() -> Response:
    """Return the style of the login page, which is there before anybody is logged in."""
    return Response((_HERE / "login.css").read_bytes(), media_type="text/css")


def local(wanted: str, root: str) -> str:
    """``wanted`` if it is a path of ours, else the first page.

    Browsers take ``//host`` for another host, a backslash for a slash, and drop tabs and line
    ends before they look.
    """
    first = f"{root}/"
    if not wanted.startswith(first) or wanted.startswith("//") or len(wanted) > _LONGEST_PATH:
        return first
    if "\\" in wanted or not wanted.isascii() or any(c <= " " or c == "\x7f" for c in wanted):
        return first
    try:
        parts = urlsplit(wanted)
    except ValueError:
        return first
    return first if parts.scheme or parts.netloc else wanted


def _open(who: Holder, request: Request, desk: Desk) -> str:
    """Begin a session; the one that this browser had before, if any, ends."""
    now = datetime.now(UTC)
    actor = audit.Actor(who=who.name, role=who.role.value, address=address(request))
    with database.transaction(desk.writers) as session:
        if before := request.cookies.get(cookie_name(desk, request)):
            access.close_session(before, session=session)
        token = access.open_session(who.key_id, now=now, session=session)
        audit.append(actor, "login", now=now, session=session)
    return token


def _page(
    root: str, following: str, *, wrong: str = "", status: HTTPStatus = HTTPStatus.OK
) -> HTMLResponse:
    html = _PAGES.get_template("login.html").render(
        root=root, next=following, wrong=wrong, research=RESEARCH_USE
    )
    return HTMLResponse(html, status)
