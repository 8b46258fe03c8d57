"""Keys, roles, the table of routes, and where a login may lead: without a server."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from pydantic import SecretStr, ValidationError
from starlette.routing import Mount

from hipscore.api import ApiError, access_rules, create_app
from hipscore.api.access_rules import RULES, SAFE, SOCKET
from hipscore.api.credentials import FAILURES, Failures, csrf_of, key_in
from hipscore.api.guard import POLICY
from hipscore.api.login import local
from hipscore.api.server import check_certificate
from hipscore.cli import audit as audit_command
from hipscore.settings import Settings
from hipscore.store import access
from hipscore.store.access import Role

OPEN = {
    ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/login"), ("POST", "/login"),
    ("GET", "/login.css"), ("GET", "/static/{path:path}"),
}  # fmt: skip


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    url = f"sqlite:///{tmp_path / 'unused.db'}"
    return create_app(Settings(data_dir=tmp_path, database_url=SecretStr(url)))


def routes(app: FastAPI) -> set[tuple[str, str]]:
    """Method and template of everything that the application answers."""
    found = set()
    for route in iter_route_contexts(app.routes):
        template = str(route.path)
        if isinstance(route.original_route, Mount):
            found.add(("GET", f"{template}/{{path:path}}"))
            continue
        methods = route.methods or {SOCKET}
        found |= {(method, template) for method in methods - {"HEAD"}}
    return found


def test_every_route_stands_in_the_table(app: FastAPI) -> None:
    served = routes(app)
    assert ("POST", "/jobs/{job_id}/retry") in served  # the walk does find routes
    missing = {
        f"{method} {template}" for method, template in served if not asked(method, template).known
    }
    assert missing == set(), "add a line for each to hipscore.api.access_rules"


def test_only_these_routes_are_open_to_everybody(app: FastAPI) -> None:
    free = {route for route in routes(app) if asked(*route).rule.role is None}
    assert free <= OPEN
    assert {rule for rule in OPEN if "{" not in rule[1]} <= free


def test_nothing_is_changed_without_the_role_of_an_operator(app: FastAPI) -> None:
    acting = {
        route for route in routes(app) if route[0] not in SAFE | {SOCKET} and route not in OPEN
    }
    weak = {
        (method, template)
        for method, template in acting
        if not (asked(method, template).rule.role or Role.VIEWER).may(Role.OPERATOR)
    }
    searches = {("POST", "/search"), *((m, t) for m, t in weak if t.endswith("/_search"))}
    assert weak - searches == {("POST", "/logout")}


def test_every_line_of_the_table_can_be_reached() -> None:
    hidden = [
        (rule.method, rule.template)
        for rule in RULES
        if asked(rule.method, rule.template).rule is not rule
    ]
    assert hidden == []


def asked(method: str, template: str) -> access_rules.Request:
    """What the table says of a route, with something in each of its places."""
    path = re.sub(r"\{\w+:path\}", "x/y/z/1/2/3", template)
    return classify(method, re.sub(r"\{\w+(:\w+)?\}", "1.2.3", path))


def classify(method: str, path: str) -> access_rules.Request:
    kind = "websocket" if method == SOCKET else "http"
    return access_rules.classify({"type": kind, "method": method, "path": path, "root_path": ""})


@pytest.mark.parametrize(
    ("method", "path", "role"),
    (
        ("GET", "/nothing", Role.VIEWER),
        ("OPTIONS", "/jobs/1/retry", Role.VIEWER),
        ("POST", "/nothing", Role.OPERATOR),
        ("DELETE", "/studies/1.2", Role.OPERATOR),
        ("TRACE", "/", Role.OPERATOR),
        ("get", "/healthz", Role.OPERATOR),
        ("POST", "/healthz", Role.OPERATOR),
        (SOCKET, "/healthz", Role.VIEWER),
        ("GET", "/healthz/", Role.VIEWER),
        ("GET", "/healthz/../studies", Role.VIEWER),
        ("GET", "//healthz", Role.VIEWER),
        ("GET", "/HEALTHZ", Role.VIEWER),
        ("GET", "/static", Role.VIEWER),
        ("HEAD", "/audit", Role.ADMIN),
        ("GET", "/audit", Role.ADMIN),
    ),
)
def test_what_is_not_exactly_an_open_route_demands_a_key(
    method: str, path: str, role: Role
) -> None:
    assert classify(method, path).rule.role is role


@pytest.mark.parametrize(
    ("path", "study", "detail"),
    (
        ("/studies/1.2.3/score", "1.2.3", {}),
        ("/studies/DOE^JOHN/score", None, {}),
        ("/studies/1.2.3/artifacts/seg", "1.2.3", {"kind": "seg"}),
        ("/studies/1.2.3/artifacts/Doe John", "1.2.3", {}),
        ("/studies/" + "1" * 65, None, {}),
        ("/DOE^JOHN", None, {}),
        ("/fhir/Patient/123456", None, {}),
        ("/dicomweb/workitems/2.25.7", None, {"workitem": "2.25.7"}),
    ),
)
def test_only_uids_numbers_and_words_of_ours_are_written_down(
    path: str, study: str | None, detail: dict[str, str]
) -> None:
    request = classify("GET", path)
    assert request.study == study
    assert request.detail == detail


def test_a_row_number_is_written_down() -> None:
    assert classify("POST", "/jobs/17/retry").detail == {"job_id": "17"}
    assert classify("POST", "/jobs/DOE/retry").detail == {}
    assert classify("POST", "/jobs/" + "9" * 20 + "/retry").detail == {}


def test_roles_are_in_order() -> None:
    assert [role for role in Role if role.may(Role.OPERATOR)] == [Role.OPERATOR, Role.ADMIN]
    assert all(role.may(Role.VIEWER) for role in Role)
    assert not Role.OPERATOR.may(Role.ADMIN)


def test_a_key_has_256_bits_and_tells_a_typo() -> None:
    keys = {access._new() for _ in range(50)}
    assert len(keys) == 50
    for key in keys:
        assert re.fullmatch(r"hips_[0-9a-f]{64}[0-9a-f]{8}", key)
        assert access.well_formed(key)
        for place in (5, 40, 76):
            typo = key[:place] + ("0" if key[place] != "0" else "1") + key[place + 1 :]
            assert not access.well_formed(typo)
        assert not access.well_formed(key[:-1])
        assert not access.well_formed(key.upper())
        assert not access.well_formed(f"{key}\n")


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "key"),
    (
        (None, None),
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        (basic("orthanc:abc"), "abc"),
        (basic("a:b:c"), "b:c"),
        (basic("abc"), ""),
        ("Basic !!!", ""),
        ("Basic 4pyT", ""),
        ("Digest abc", ""),
        ("", ""),
        ("abc", ""),
    ),
)
def test_the_key_is_read_from_the_head(header: str | None, key: str | None) -> None:
    assert key_in(header) == key


@pytest.mark.parametrize(
    "wanted",
    (
        "", "x", "https://evil.example/", "//evil.example", "///evil.example", "/\\evil.example",
        "/\t/evil.example", "\t//evil.example", "/\n/evil.example", "/ /x", "javascript:alert(1)",
        "http:/x", "/a\r\nSet-Cookie: x=1", "/é", "/x\x7f", "/" + "x" * 3000, "\\/evil.example",
    ),
)  # fmt: skip
def test_a_login_leads_nowhere_else(wanted: str) -> None:
    assert local(wanted, "") == "/"


@pytest.mark.parametrize("wanted", ("/", "/studies/1.2/score?x=1", "/a//b", "/%2f%2fevil", "/@x"))
def test_a_login_leads_back(wanted: str) -> None:
    assert local(wanted, "") == wanted


def test_a_login_stays_below_the_root() -> None:
    assert local("/other", "/hips") == "/hips/"
    assert local("/hips/jobs", "/hips") == "/hips/jobs"


def test_too_many_failed_logins_of_one_address_have_to_wait() -> None:
    failures = Failures()
    assert [failures.add("10.0.0.1") for _ in range(FAILURES)] == [None] * FAILURES
    assert 0 < (failures.add("10.0.0.1") or 0) <= 60
    assert failures.add("10.0.0.2") is None


def test_the_token_of_a_form_does_not_give_the_cookie_away() -> None:
    assert csrf_of("a") != csrf_of("b")
    assert "secret" not in csrf_of("secret")
    assert len(csrf_of("a")) == 64


def test_no_inline_script_or_style_is_allowed() -> None:
    assert "unsafe" not in POLICY
    assert "*" not in POLICY
    assert POLICY.startswith("default-src 'none';")


@pytest.mark.parametrize(
    ("changes", "demanded"),
    (
        ({}, False),
        ({"http_host": "127.0.0.9"}, False),
        ({"http_host": "::1"}, False),
        ({"http_host": "localhost"}, False),
        ({"http_host": "0.0.0.0"}, True),  # noqa: S104 - a setting
        ({"http_host": "::"}, True),
        ({"http_host": "10.0.0.1"}, True),
        ({"http_host": "hip.internal"}, True),
        ({"http_proxies": "127.0.0.1"}, True),
        ({"access": "keys"}, True),
        ({"access": "open", "http_host": "0.0.0.0"}, False),  # noqa: S104 - likewise
    ),
)
def test_keys_are_demanded_unless_only_this_machine_can_come(
    changes: dict[str, str], demanded: bool
) -> None:
    assert Settings(**changes).keys_demanded is demanded  # type: ignore[arg-type]


@pytest.mark.parametrize("proxies", ("*", "proxy.example", "10.0.0.5/33"))
def test_a_proxy_is_an_address_or_a_network(proxies: str) -> None:
    with pytest.raises(ValidationError, match=r"write 10.0.0.5 or 10.0.0.0/24"):
        Settings(http_proxies=proxies)


def test_https_needs_both_files(tmp_path: Path) -> None:
    check_certificate(Settings())
    some = tmp_path / "some.pem"
    some.write_text("no PEM")
    with pytest.raises(ApiError, match="HIPSCORE_HTTP_PRIVATE_KEY is not set"):
        check_certificate(Settings(http_certificate=some))
    with pytest.raises(ApiError, match="HIPSCORE_HTTP_CERTIFICATE is not set"):
        check_certificate(Settings(http_private_key=some))
    away = tmp_path / "away.pem"
    with pytest.raises(ApiError, match=r"HTTP_PRIVATE_KEY: .*away.pem cannot be read: No such"):
        check_certificate(Settings(http_certificate=some, http_private_key=away))
    with pytest.raises(ApiError, match="not PEM"):
        check_certificate(Settings(http_certificate=some, http_private_key=some))


def test_a_user_without_a_name_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid 4711")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert audit_command.os_user() == "unknown"
