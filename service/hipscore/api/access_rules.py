"""Which route demands which role, and under which name its use is recorded: one table.

A request is compared with the templates in order, exactly as the router compares; the first
that fits decides. What no line fits is demanded a key for all the same: a viewer's to look, an
operator's to act.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette._utils import get_route_path  # what the router itself compares
from starlette.routing import compile_path
from starlette.types import Scope

from hipscore.header import is_uid
from hipscore.store.access import Role

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
#: stands for the method of a web-socket, which has none
SOCKET = "WEBSOCKET"

#: open to everybody, and not recorded
_OPEN = (
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/login"),
    ("POST", "/login"),
    ("GET", "/login.css"),
    ("GET", "/static/{path:path}"),
)

#: method, route, least role, name in the audit log (None: nothing of a patient is in it, or the
#: route writes its own row)
_GUARDED: tuple[tuple[str, str, Role, str | None], ...] = (
    ("GET", "/", Role.VIEWER, "list studies"),
    ("GET", "/studies", Role.VIEWER, "list studies"),
    ("GET", "/studies/{uid}", Role.VIEWER, "look at study"),
    ("GET", "/studies/{uid}/score", Role.VIEWER, "look at score"),
    ("GET", "/studies/{uid}/ledger", Role.VIEWER, "look at ledger"),
    ("GET", "/studies/{uid}/artifacts/{kind}", Role.VIEWER, "fetch artifact"),
    ("GET", "/worklist", Role.VIEWER, "list studies"),
    ("GET", "/jobs", Role.VIEWER, "list jobs"),
    ("POST", "/jobs/{job_id}/retry", Role.OPERATOR, "retry job"),
    ("POST", "/jobs/{job_id}/withdraw", Role.OPERATOR, "withdraw result"),
    ("POST", "/deliveries/{delivery_id}/retry", Role.OPERATOR, "retry delivery"),
    ("GET", "/metrics", Role.VIEWER, None),
    ("GET", "/openapi.json", Role.VIEWER, None),
    ("POST", "/logout", Role.VIEWER, None),
    ("GET", "/audit", Role.ADMIN, "read audit"),
    ("GET", "/queue", Role.VIEWER, "list jobs"),
    ("POST", "/queue/jobs/{job_id}/retry", Role.OPERATOR, "retry job"),
    ("POST", "/queue/jobs/{job_id}/withdraw", Role.OPERATOR, "withdraw result"),
    ("POST", "/queue/deliveries/{delivery_id}/retry", Role.OPERATOR, "retry delivery"),
    ("POST", "/search", Role.VIEWER, "search"),
    ("POST", "/dicomweb/studies", Role.OPERATOR, "store images"),
    ("POST", "/dicomweb/studies/{uid}", Role.OPERATOR, "store images"),
    ("GET", "/dicomweb/workitems", Role.VIEWER, "list work items"),
    ("POST", "/dicomweb/workitems", Role.OPERATOR, "create work item"),
    ("GET", "/dicomweb/workitems/{workitem}", Role.VIEWER, "look at work item"),
    ("POST", "/dicomweb/workitems/{workitem}", Role.OPERATOR, "change work item"),
    ("PUT", "/dicomweb/workitems/{workitem}/state", Role.OPERATOR, "change work item"),
    ("POST", "/dicomweb/workitems/{workitem}/cancelrequest", Role.OPERATOR, "cancel work item"),
    ("POST", "/dicomweb/workitems/{workitem}/subscribers/{aet}", Role.OPERATOR, "subscribe"),
    ("DELETE", "/dicomweb/workitems/{workitem}/subscribers/{aet}", Role.OPERATOR, "unsubscribe"),
    (
        "POST",
        "/dicomweb/workitems/{workitem}/subscribers/{aet}/suspend",
        Role.OPERATOR,
        "unsubscribe",
    ),
    # what is told on it is told once: nobody else may listen it away
    (SOCKET, "/dicomweb/subscribers/{aet}", Role.OPERATOR, "listen to work items"),
    ("GET", "/fhir/metadata", Role.VIEWER, None),
    ("GET", "/fhir/{resource}", Role.VIEWER, "search"),
    ("POST", "/fhir/{resource}/_search", Role.VIEWER, "search"),
    ("GET", "/fhir/DiagnosticReport/{uid}", Role.VIEWER, "look at study"),
    ("GET", "/fhir/ImagingStudy/{uid}", Role.VIEWER, "look at study"),
    ("GET", "/fhir/{resource}/{resource_id}", Role.VIEWER, "look at study"),
    # what stands above goes first; these take what lies below, whatever is added there
    ("GET", "/studies/{uid}/{rest:path}", Role.VIEWER, "look at study"),
    ("GET", "/dicomweb/studies/{uid}", Role.VIEWER, "retrieve"),
    ("GET", "/dicomweb/studies/{uid}/{rest:path}", Role.VIEWER, "retrieve"),
    ("GET", "/dicomweb/{rest:path}", Role.VIEWER, "search"),
)

#: names of path parameters that hold a Study Instance UID
_STUDY = ("uid", "study", "study_uid", "study_instance_uid")
#: path parameters that are words of ours, once a route has taken them
_WORDS = ("kind",)
_WORD = re.compile(r"[a-z_]{1,32}")
#: path parameters that are row numbers; any other number could be somebody's
_NUMBERS = ("job_id", "delivery_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What holds for one route. ``role`` None: open to everybody. ``action`` None: no row."""

    method: str
    template: str
    role: Role | None
    action: str | None
    pattern: re.Pattern[str] = field(repr=False)


def _rule(method: str, template: str, role: Role | None, action: str | None) -> Rule:
    pattern, _, _ = compile_path(template)
    return Rule(method=method, template=template, role=role, action=action, pattern=pattern)


RULES = (
    *(_rule(method, template, None, None) for method, template in _OPEN),
    *(_rule(*line) for line in _GUARDED),
)
_LOOK = _rule("GET", "/{path:path}", Role.VIEWER, "other look")
_ACT = _rule("POST", "/{path:path}", Role.OPERATOR, "other action")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for, as far as it may be written down: no patient and no query string."""

    method: str
    rule: Rule
    known: bool
    study: str | None
    detail: Mapping[str, str]

    @property
    def looks(self) -> bool:
        """Whether nothing is changed by it; searches come by POST to keep names out of URLs."""
        return not self.unsafe or self.rule.role is Role.VIEWER

    @property
    def unsafe(self) -> bool:
        """Whether the method is one that may change something (RFC 9110 9.2.1)."""
        return self.method not in SAFE and self.method != SOCKET


def classify(scope: Scope) -> Request:
    """Find the rule for a request, and the UIDs and row numbers in its path."""
    method = SOCKET if scope["type"] == "websocket" else scope["method"]
    asked = "GET" if method in SAFE else method
    path = get_route_path(scope)
    for rule in RULES:
        found = rule.pattern.match(path) if rule.method == asked else None
        if found is not None:
            given = found.groupdict()
            return Request(
                method=method, rule=rule, known=True, study=_study(given), detail=_detail(given)
            )
    rule = _LOOK if method in SAFE or method == SOCKET else _ACT
    return Request(method=method, rule=rule, known=False, study=None, detail={})


def _study(given: Mapping[str, Any]) -> str | None:
    return next((given[name] for name in _STUDY if is_uid(given.get(name) or "")), None)


def _detail(given: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a path that cannot name a patient: row numbers, UIDs, words of ours."""
    return {name: value for name, value in given.items() if _harmless(name, value)}


def _harmless(name: str, value: str) -> bool:
    if name in _STUDY:
        return False  # it has a column of its own
    if name in _NUMBERS:
        return value.isascii() and value.isdecimal() and len(value) <= 19
    if name in _WORDS:
        return _WORD.fullmatch(value) is not None
    return "." in value and is_uid(value)


def describe_in(schema: dict[str, Any]) -> None:
    """Make an OpenAPI document say what is demanded where keys are."""
    schema.setdefault("components", {})["securitySchemes"] = _SCHEMES
    for template, path in schema["paths"].items():
        for method, operation in path.items():
            if (method.upper(), template) in _OPEN:
                continue
            operation["security"] = [{"bearer": []}, {"basic": []}]
            for status, why in _ANSWERS.items():
                operation["responses"].setdefault(status, {"description": why})


_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "from hipscore keys create"},
    "basic": {"type": "http", "scheme": "basic", "description": "any name, the key as password"},
}
_ANSWERS = {
    "401": "a key is demanded, or the one that was shown opens nothing",
    "403": "the role of the key is not enough, or a page of another site asks",
    "429": "too many failed logins from this address",
    "503": "the database or the disk cannot be used right now",
}
