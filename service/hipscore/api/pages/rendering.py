"""From a template and a view to a page, with what every page shows."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from hipscore import __version__
from hipscore.api.pages import words
from hipscore.domain import RESEARCH_USE

_OPERATORS = {"operator", "admin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Who looks at the page, and what they may do."""

    name: str
    may_act: bool
    csrf: str
    logged_in: bool


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("hipscore.api.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters.update(
        score=words.score,
        difference=words.difference,
        day=words.day,
        moment=words.moment,
        ago=words.ago,
        person=words.person,
        sex=words.sex,
        plural=words.plural,
        status=words.status,
        sent=words.sent,
        delivery=words.delivery,
        rule=words.rule,
        area=words.area,
        words=words.words,
    )
    return made


_TEMPLATES = _environment()


def reader(request: Request) -> Reader:
    """Who looks, as the access control says; where there is none, everybody may act."""
    visitor = getattr(request.state, "visitor", None)
    if visitor is None:
        return Reader(name="", may_act=True, csrf="", logged_in=False)
    return Reader(
        name=visitor.name,
        may_act=str(visitor.role) in _OPERATORS,
        csrf=visitor.csrf or "",
        logged_in=bool(getattr(visitor, "session", False)),
    )


def root(request: Request) -> str:
    """Path the application is mounted at."""
    path: str = request.scope.get("root_path", "")
    return path


def here(request: Request) -> str:
    """Path and query of this page, for forms that lead back to it."""
    query = f"?{request.url.query}" if request.url.query else ""
    path: str = request.scope["path"]
    return (path if path.startswith(root(request)) else root(request) + path) + query


def render(
    request: Request, template: str, *, http_status: int = HTTPStatus.OK, **context: Any
) -> HTMLResponse:
    """Build the page of a template."""
    text = _TEMPLATES.get_template(template).render(
        root=root(request),
        here=here(request),
        reader=reader(request),
        version=__version__,
        research_use=RESEARCH_USE,
        **context,
    )
    return HTMLResponse(text, status_code=http_status)
