"""Who may look and who may act, over a real server: keys, login, roles, attacks."""

from __future__ import annotations

import base64
import logging
import re
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session, sessionmaker
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from hipscore.api.credentials import FAILURES
from hipscore.api.guard import HEADERS
from hipscore.settings import Settings
from hipscore.store import access
from hipscore.store.access import Role
from hipscore.store.tables import AccessKey, AccessSession
from tests import servers
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration.access_steps import LOOK, PAGE, Site, problem, raw, site


@pytest.fixture
def guarded(settings: Settings, maker: sessionmaker[Session]) -> Iterator[Site]:
    """An API that demands keys."""
    with site(settings.model_copy(update={"access": "keys"}), maker) as running:
        yield running


def test_without_a_key_only_health_and_login_answer(guarded: Site) -> None:
    nobody = guarded.client()
    for path in ("/healthz", "/readyz", "/login", "/login.css"):
        assert nobody.get(path).status_code == 200, path
    for path in (
        "/", "/studies", LOOK, "/jobs", "/worklist", "/metrics", "/openapi.json", "/audit",
        "/nothing", "/docs", "/whoami",
    ):  # fmt: skip
        answer = nobody.get(path)
        problem(answer, 401)
        assert answer.headers["www-authenticate"] == 'Bearer realm="hipscore"'
    problem(nobody.post(f"/jobs/{guarded.job}/retry"), 401)
    assert guarded.rows() == []


def test_a_key_opens_as_bearer_and_as_the_password_of_basic(guarded: Site) -> None:
    key = guarded.key(name="ward-7")
    assert guarded.client(key).get("/whoami").json()["name"] == "ward-7"
    assert guarded.client(auth=("anybody", key)).get(LOOK).status_code == 200
    assert guarded.client(auth=(key, "anything")).get(LOOK).status_code == 401


@pytest.mark.parametrize("where", ("bearer", "basic"))
def test_unknown_revoked_and_expired_keys_are_answered_alike_and_named_in_the_log(
    guarded: Site, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    now = datetime.now(UTC)
    revoked = guarded.key(name="gone")
    expired = guarded.key(name="old", days=1, now=now - timedelta(days=2))
    with guarded.maker.begin() as session:
        access.revoke("gone", now=now, session=session)
    answers = []
    with caplog.at_level(logging.WARNING, "hipscore.api.credentials"):
        for key in (revoked, expired, access._new()):
            client = guarded.client(key) if where == "bearer" else guarded.client(auth=("x", key))
            answers.append(client.get(LOOK))
    assert {answer.text for answer in answers} == {answers[0].text}
    assert problem(answers[0], 401).startswith("this key opens nothing here")
    said = [record.getMessage() for record in caplog.records]
    for part in ("key gone is revoked", "key old is expired", "key unknown is unknown"):
        assert any(part in line for line in said), part
    assert not any(key in line for key in (revoked, expired) for line in said)
    assert [row[:2] for row in guarded.rows()] == [
        ("gone", "failed login"), ("old", "failed login"), ("unknown", "failed login"),
    ]  # fmt: skip


def test_a_mistyped_key_is_told_as_one(guarded: Site) -> None:
    key = guarded.key()
    typo = key[:-1] + ("0" if key[-1] != "0" else "1")
    assert "mistyped" in problem(guarded.client(typo).get(LOOK), 401)


def test_a_revoked_key_ends_at_once_with_its_sessions(guarded: Site) -> None:
    key = guarded.key(name="ann")
    program, browser = guarded.client(key), guarded.browser(key)
    assert program.get(LOOK).status_code == browser.get(LOOK).status_code == 200
    with guarded.maker.begin() as session:
        access.revoke("ann", now=datetime.now(UTC), session=session)
    assert program.get(LOOK).status_code == 401
    assert browser.get(LOOK).status_code == 303


def test_a_session_ends_when_its_key_expires_and_after_its_time(guarded: Site) -> None:
    browser = guarded.browser(guarded.key(name="short"))
    other = guarded.browser(guarded.key(name="long"))
    past = datetime.now(UTC) - timedelta(seconds=1)
    with guarded.maker.begin() as session:
        session.execute(update(AccessKey).where(AccessKey.name == "short").values(expires_at=past))
        session.execute(update(AccessSession).values(expires_at=past).where(AccessSession.id == 2))
    assert browser.get(LOOK).status_code == 303
    assert other.get(LOOK).status_code == 303


def test_the_last_use_of_a_key_is_noted_once_a_minute(guarded: Site) -> None:
    client = guarded.client(guarded.key())

    def noted() -> datetime | None:
        with guarded.maker() as session:
            return session.scalars(select(AccessKey.last_used_at)).one()

    assert noted() is None
    client.get("/metrics")
    first = noted()
    assert first is not None
    assert abs(datetime.now(UTC) - first) < timedelta(seconds=30)
    client.get("/metrics")
    assert noted() == first
    with guarded.maker.begin() as session:
        session.execute(update(AccessKey).values(last_used_at=first - timedelta(minutes=2)))
    client.get("/metrics")
    assert noted() > first  # type: ignore[operator]


def test_a_name_is_never_used_again(guarded: Site) -> None:
    guarded.key(name="ann")
    with pytest.raises(access.NotAllowed, match="there is or was a key ann"):
        guarded.key(name="ann")
    for name in ("", "a b", "local", "Unknown", "x" * 65, "a\n", "-a"):
        with pytest.raises(access.NotAllowed):
            guarded.key(name=name)


def test_keys_and_cookies_are_not_in_the_database(guarded: Site) -> None:
    key = guarded.key()
    browser = guarded.browser(key)
    (cookie,) = browser.cookies.jar
    with guarded.maker() as session:
        for table in ("access_keys", "access_sessions", "audit"):
            stored = str(session.execute(text(f"SELECT * FROM {table}")).all())  # noqa: S608
            assert key not in stored
            assert key[5:69] not in stored
            assert str(cookie.value) not in stored


def test_many_failed_logins_of_an_address_have_to_wait_and_keys_still_open(guarded: Site) -> None:
    guesser = guarded.client("hips_guess")
    statuses = [guesser.get(LOOK).status_code for _ in range(FAILURES + 5)]
    assert statuses == [401] * FAILURES + [429] * 5
    assert int(guesser.get(LOOK).headers["retry-after"]) > 0
    assert len(guarded.rows()) == FAILURES  # nobody can fill the audit log from outside
    assert "Wait" in guarded.client().post("/login", data={"key": "x"}).text.replace("wait", "Wait")
    assert guarded.client(guarded.key()).get(LOOK).status_code == 200


@steps.sqlite_only
def test_guessing_takes_as_long_for_a_key_that_was_as_for_one_that_never_was(
    guarded: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hipscore.api.credentials.FAILURES", 10_000)
    revoked = guarded.key(name="gone")
    with guarded.maker.begin() as session:
        access.revoke("gone", now=datetime.now(UTC), session=session)
    spent: dict[str, list[float]] = {"revoked": [], "unknown": []}
    client = guarded.client()
    for _ in range(40):
        for name, key in (("revoked", revoked), ("unknown", access._new())):
            begun = time.perf_counter()
            client.get("/whoami", headers={"Authorization": f"Bearer {key}"})
            spent[name].append(time.perf_counter() - begun)
    one, two = (statistics.median(each) for each in spent.values())
    assert max(one, two) < 2 * min(one, two)


def test_each_role_may_do_what_it_is_for(guarded: Site) -> None:
    what: dict[str, Callable[[httpx.Client], httpx.Response]] = {
        "look": lambda client: client.get(LOOK),
        "act": lambda client: client.post(f"/deliveries/{guarded.delivery}/retry"),
        "unknown action": lambda client: client.put("/nothing"),
        "audit": lambda client: client.get("/audit"),
    }
    allowed = {
        Role.VIEWER: {"look"},
        Role.OPERATOR: {"look", "act", "unknown action"},
        Role.ADMIN: {"look", "act", "unknown action", "audit"},
    }
    for role, names in allowed.items():
        client = guarded.client(guarded.key(role))
        for name, call in what.items():
            answer = call(client)
            assert (answer.status_code != 403) == (name in names), (role, name)
    assert "role admin" in problem(guarded.client(guarded.key(name="v")).get("/audit"), 403)


def test_a_refused_action_is_recorded_and_not_done(guarded: Site) -> None:
    client = guarded.client(guarded.key(name="v"))
    problem(client.post(f"/jobs/{guarded.job}/retry"), 403)
    row = guarded.last()
    assert (row.who, row.role, row.action) == ("v", "viewer", "refused")
    assert row.detail == {"method": "POST", "route": "/jobs/{job_id}/retry"}


@pytest.mark.parametrize(
    "headers",
    (
        {"X-HTTP-Method-Override": "POST"},
        {"X-Method-Override": "DELETE"},
        {"X-HTTP-Method": "POST"},
    ),
)
@steps.sqlite_only
def test_no_header_makes_another_method_of_a_look(guarded: Site, headers: dict[str, str]) -> None:
    viewer = guarded.client(guarded.key())
    answer = viewer.get(f"/jobs/{guarded.job}/retry", headers=headers)
    problem(answer, 405)


@steps.sqlite_only
def test_no_trick_with_the_path_gets_past_the_door(guarded: Site) -> None:
    """Sent as it stands: clients would clean the path up before."""
    paths = (
        "//", "//studies", "/healthz/../studies", "/healthz/%2e%2e/studies", "/healthz%2f..%2fjobs",
        "/login/../jobs", "/HEALTHZ", "/healthz/", "/healthz;/jobs", "/jobs/", "/jobs%00",
        "/jobs?/healthz", "/jobs#/healthz", "/%6aobs", "/jobs%0a", "/audit/", "/audit%0a",
        "//evil.example/login", "http://evil.example/login/x", "/./jobs", "/static", "/login/x",
        "/logout", "*", "\\jobs",
    )  # fmt: skip
    for method in ("GET", "HEAD", "OPTIONS", "POST", "DELETE", "TRACE", "get"):
        for path in paths:
            assert raw(guarded, method, path)[0] in {400, 401}, (method, path)
        for path in ("/static/../jobs", "/static/%2e%2e/jobs", "/static/..%2fjobs"):
            # no file, and nothing of a study
            assert raw(guarded, method, path)[0] in {401, 404, 405}, (method, path)


@steps.sqlite_only
def test_forged_cookies_open_nothing(guarded: Site) -> None:
    name = f"hipscore-{guarded.settings.http_port}"
    guarded.browser(guarded.key())
    with guarded.maker() as session:
        stored = session.scalars(select(AccessSession.sha256)).one()
    for value in ("", "x", stored, "' OR 1=1 --", "1", "a" * 4000, "%00", "\xff"):
        status, _ = raw(guarded, "GET", LOOK, f"Cookie: {name}={value}")
        assert status == 401, value
    for other in ("session", f"__Host-{name}", name.upper()):
        assert raw(guarded, "GET", LOOK, f"Cookie: {other}={stored}")[0] == 401


@steps.sqlite_only
def test_a_session_cannot_be_fixed_from_outside(guarded: Site) -> None:
    name = f"hipscore-{guarded.settings.http_port}"
    browser = guarded.client(headers=PAGE, cookies={name: "chosen-by-the-attacker"})
    first = browser.post("/login", data={"key": guarded.key()})
    token = first.cookies[name]
    assert token != "chosen-by-the-attacker"
    assert len(token) >= 43
    assert guarded.client(cookies={name: "chosen-by-the-attacker"}).get(LOOK).status_code == 401
    # who logs in again gets another session, and the old one is over
    again = guarded.client(headers=PAGE, cookies={name: token})
    second = again.post("/login", data={"key": guarded.key(name="b")}).cookies[name]
    assert second != token
    assert guarded.client(cookies={name: token}).get(LOOK).status_code == 401
    assert guarded.client(cookies={name: second}).get(LOOK).status_code == 200


def test_a_browser_is_led_to_the_login_and_back(guarded: Site) -> None:
    browser = guarded.client(headers=PAGE)
    answer = browser.get(f"{LOOK}?pretty=1&x=%2F")
    assert answer.status_code == 303
    page = browser.get(answer.headers["location"])
    assert page.status_code == 200
    assert "For research, not for clinical decisions" in page.text
    (following,) = re.findall(r'name="next" value="([^"]*)"', page.text)
    back = browser.post(
        "/login", data={"key": guarded.key(), "next": following.replace("&amp;", "&")}
    )
    assert back.headers["location"] == f"{LOOK}?pretty=1&x=%2F"
    assert browser.get(back.headers["location"]).status_code == 200


@steps.sqlite_only
@pytest.mark.parametrize(
    "following",
    (
        "https://evil.example", "//evil.example", "/\\evil.example", "/\t/evil.example",
        "javascript:alert(1)", '"><script>alert(1)</script>', "/x\r\nSet-Cookie: a=b",
    ),
)  # fmt: skip
def test_a_login_cannot_lead_to_another_site(guarded: Site, following: str) -> None:
    browser = guarded.client(headers=PAGE)
    page = browser.get("/login", params={"next": following})
    assert 'name="next" value="/"' in page.text
    assert "<script" not in page.text
    answer = browser.post("/login", data={"key": guarded.key(), "next": following})
    assert answer.headers["location"] == "/"
    assert "a" not in answer.cookies


@steps.sqlite_only
def test_a_path_of_two_slashes_is_no_way_to_another_site(guarded: Site) -> None:
    _, answer = raw(guarded, "GET", "//evil.example/x", "Accept: text/html")
    (where,) = re.findall(r"(?mi)^location: (\S+)", answer)
    assert where == "/login?next=//evil.example/x"
    assert 'name="next" value="/"' in guarded.client().get(where).text


def test_a_wrong_key_shows_the_login_again(guarded: Site) -> None:
    browser = guarded.client(headers=PAGE)
    for key in ("", "x", access._new()):
        answer = browser.post("/login", data={"key": key, "next": "/jobs"})
        assert answer.status_code == 401
        assert 'role="alert"' in answer.text
        assert not answer.cookies
    assert 'value="/jobs"' in answer.text


@steps.sqlite_only
@pytest.mark.parametrize(
    "body",
    (
        b"", b"\xff\xfe", b"key", b"key=%ff", b"key=a&key=b", b"=", b"&" * 500,
        b"a=1&" * 5000, b"x" * 70_000,
    ),
)  # fmt: skip
def test_no_login_form_makes_it_fail(guarded: Site, body: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert guarded.client().post("/login", content=body, headers=headers).status_code in {401, 413}


def test_a_form_of_another_site_changes_nothing(guarded: Site) -> None:
    browser = guarded.browser(guarded.key(Role.OPERATOR))
    retry = f"/deliveries/{guarded.delivery}/retry"
    token = guarded.csrf(browser)
    before = len(guarded.rows())
    for headers, data in (
        ({}, {}),
        ({}, {"csrf": ""}),
        ({}, {"csrf": "0" * 64}),
        ({}, {"csrf": token[:-1]}),
        ({"X-CSRF-Token": "0" * 64}, {"csrf": token}),
        ({"X-CSRF-Token": "%C3%A9"}, {}),
        ({"Origin": "https://evil.example"}, {"csrf": token}),
        ({"Origin": "null"}, {"csrf": token}),
        ({"Sec-Fetch-Site": "cross-site"}, {"csrf": token}),
        ({"Sec-Fetch-Site": "same-site"}, {"csrf": token}),
    ):
        problem(browser.post(retry, data=data, headers=headers), 403)
    plain = {"Content-Type": "text/plain"}
    problem(browser.post(retry, content=f"csrf={token}", headers=plain), 403)
    assert len(guarded.rows()) == before


def test_a_form_and_a_script_of_ours_may_act(guarded: Site) -> None:
    browser = guarded.browser(guarded.key(Role.OPERATOR))
    token, retry = guarded.csrf(browser), f"/deliveries/{guarded.delivery}/retry"
    own = {"Origin": guarded.base, "Sec-Fetch-Site": "same-origin"}
    assert browser.post(retry, data={"csrf": token, "x": "y"}, headers=own).status_code == 202
    script = {**own, "X-CSRF-Token": token}
    assert browser.post(retry, headers=script).status_code in {202, 409}
    # the token of another session is none
    other = guarded.csrf(guarded.browser(guarded.key(Role.OPERATOR, name="other")))
    problem(browser.post(retry, data={"csrf": other}), 403)


@steps.sqlite_only
def test_the_body_of_a_form_reaches_the_route(guarded: Site) -> None:
    from fastapi import Form

    @guarded.app.post("/echo")
    def echo(word: str = Form(), csrf: str = Form()) -> str:
        return f"{word} {len(csrf)}"

    browser = guarded.browser(guarded.key(Role.OPERATOR))
    answer = browser.post("/echo", data={"csrf": guarded.csrf(browser), "word": "hip"})
    assert answer.json() == "hip 64"
    long = browser.post("/echo", data={"csrf": guarded.csrf(browser), "word": "x" * 70_000})
    problem(long, 413)


def test_a_logged_in_browser_can_log_out(guarded: Site) -> None:
    browser = guarded.browser(guarded.key(name="ann"))
    kept = dict(browser.cookies)
    problem(browser.post("/logout"), 403)  # not by another site either
    answer = browser.post("/logout", data={"csrf": guarded.csrf(browser)})
    assert answer.headers["location"] == "/login"
    assert not browser.cookies
    assert guarded.client(cookies=kept).get(LOOK).status_code == 401
    assert [row[1] for row in guarded.rows() if row[0] == "ann" and "log" in row[1]] == [
        "login", "logout",
    ]  # fmt: skip


@steps.sqlite_only
def test_a_cookie_is_kept_from_scripts_and_other_sites(guarded: Site) -> None:
    browser = guarded.client()
    header = browser.post("/login", data={"key": guarded.key()}).headers["set-cookie"]
    attributes = {part.strip().lower() for part in header.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/", "max-age=43200"} <= attributes
    assert "secure" not in attributes  # there is no HTTPS here: the browser would drop it
    assert not any(part.startswith("domain") for part in attributes)


def shake(site: Site, **headers: str) -> str:
    """What a web-socket says first."""
    address = f"ws://{servers.LOOPBACK}:{site.settings.http_port}/socket"
    origin = headers.pop("Origin", None)
    with connect(address, additional_headers=headers, origin=origin, proxy=None) as socket:  # type: ignore[arg-type]
        return str(socket.recv())


@steps.sqlite_only
def test_a_web_socket_demands_a_key(guarded: Site) -> None:
    key = guarded.key(name="ann")
    bearer = f"Bearer {key}"
    assert shake(guarded, Authorization=bearer) == "ann"
    (cookie,) = guarded.browser(key).cookies.jar
    own = f"http://{servers.LOOPBACK}:{guarded.settings.http_port}"
    assert shake(guarded, Cookie=f"{cookie.name}={cookie.value}", Origin=own) == "ann"
    for headers, status in (
        ({}, 401),
        ({"Authorization": f"Bearer {access._new()}"}, 401),
        ({"Authorization": bearer, "Origin": "https://evil.example"}, 403),
        ({"Cookie": f"{cookie.name}={cookie.value}", "Origin": "https://evil.example"}, 403),
    ):
        with pytest.raises(InvalidStatus) as refused:
            shake(guarded, **headers)
        assert refused.value.response.status_code == status
    assert ("ann", "other look", None) in guarded.rows()


@steps.sqlite_only
def test_a_web_socket_for_a_name_that_is_not_ours_is_refused(guarded: Site) -> None:
    status, _ = raw(
        guarded, "GET", "/socket", "Upgrade: websocket", "Connection: upgrade",
        "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
        f"Authorization: Bearer {guarded.key()}", "X-Sent-Host-Before: localhost",
    )  # fmt: skip
    assert status in {101, 400}
    address = f"ws://evil.example:{guarded.settings.http_port}/socket"
    import socket

    plain = socket.create_connection((servers.LOOPBACK, guarded.settings.http_port))
    with pytest.raises(InvalidStatus) as refused, connect(address, sock=plain, proxy=None):
        pass
    assert refused.value.response.status_code == 421


@steps.sqlite_only
def test_every_answer_carries_the_headers(guarded: Site) -> None:
    viewer = guarded.client(guarded.key())
    nobody = guarded.client()
    answers = [
        viewer.get(LOOK), viewer.get("/"), viewer.get("/nothing"), viewer.post("/jobs/1/retry"),
        guarded.client(guarded.key(name="b")).get("/defect"), nobody.get(LOOK),
        nobody.get("/login"), nobody.get("/login.css"),
        nobody.get("/healthz"), nobody.get("/", headers={"Host": "evil.example"}),
        nobody.get("/", headers=PAGE), viewer.get("/metrics"),
    ]  # fmt: skip
    assert {200, 303, 401, 403, 404, 421, 500} == {each.status_code for each in answers}
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers.get_list(name) == [value], (answer.url, answer.status_code)
        kept = "no-cache" if answer.url.path == "/login.css" else "no-store"
        assert answer.headers["cache-control"] == kept
        assert "strict-transport-security" not in answer.headers
        assert "server" not in answer.headers


def test_the_log_has_no_query_no_key_and_no_path_of_others(
    guarded: Site, caplog: pytest.LogCaptureFixture
) -> None:
    key = guarded.key(name="ann")
    with caplog.at_level(logging.DEBUG):
        viewer = guarded.client(key)
        viewer.get(f"{LOOK}?patient=DOE%5EJOHN")
        viewer.get("/DOE^JOHN/x")
        viewer.get("/studies/DOE^JOHN/score")
        guarded.client(headers=PAGE).get("/worklist?patient=DOE%5EJOHN")
        guarded.browser(key)
    lines = [
        f"{r.name} {r.getMessage()}"
        for r in caplog.records
        if not r.name.startswith(("httpx", "httpcore"))
    ]
    assert any(
        f"GET /studies/{{uid}} study {store_steps.STUDY} 200" in line and "ann" in line
        for line in lines
    )
    for line in lines:
        assert "DOE" not in line
        assert key not in line


def test_basic_with_a_broken_name_is_no_defect(guarded: Site) -> None:
    bad = base64.b64encode(b"\xff\xfe:\xff").decode()
    answer = guarded.client(headers={"Authorization": f"Basic {bad}"}).get(LOOK)
    problem(answer, 401)
