"""The audit log: what cannot be recorded is neither shown nor done."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from hipscore.cli import group
from hipscore.settings import Settings
from hipscore.store import access, audit
from hipscore.store.access import Role
from tests import servers
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration.access_steps import LOOK, PAGE, Site, problem, site


@pytest.fixture
def guarded(settings: Settings, maker: sessionmaker[Session]) -> Iterator[Site]:
    """An API that demands keys."""
    with site(settings.model_copy(update={"access": "keys"}), maker) as running:
        yield running


def test_a_look_is_recorded_once_a_minute_and_an_unknown_study_is_none(guarded: Site) -> None:
    viewer = guarded.client(guarded.key(name="ann"))
    study = store_steps.STUDY
    for path in (LOOK, LOOK, f"/studies/{study}/ledger", "/studies", "/studies/9.9"):
        viewer.get(f"{path}?who=DOE")
    viewer.get("/metrics")
    assert guarded.rows() == [
        ("ann", "look at study", study),
        ("ann", "look at ledger", study),
        ("ann", "list studies", None),
    ]
    row = guarded.last()
    assert (row.role, row.address, row.detail) == ("viewer", servers.LOOPBACK, {})
    # another visitor's look is another look
    guarded.client(guarded.key(name="bob")).get(LOOK)
    assert guarded.rows()[-1] == ("bob", "look at study", study)


def test_an_action_is_recorded_with_its_study_and_its_failure(guarded: Site) -> None:
    operator = guarded.client(guarded.key(Role.OPERATOR, name="op"))
    operator.post(f"/deliveries/{guarded.delivery}/retry")
    problem(operator.post(f"/jobs/{guarded.job}/retry"), 409)
    study = store_steps.STUDY
    assert guarded.rows() == [
        ("op", "retry delivery", study),
        ("op", "retry job", study),
        ("op", "retry job", study),
    ]
    assert guarded.last().detail == {"job_id": str(guarded.job), "not_done": 409}


def without_audit(site: Site) -> None:
    """Rows cannot be written any more: the disk is full, the table is gone, …."""
    with site.maker.begin() as session:
        session.execute(text("ALTER TABLE audit RENAME TO away"))


def test_what_cannot_be_recorded_is_neither_shown_nor_done(guarded: Site) -> None:
    operator = guarded.client(guarded.key(Role.OPERATOR))
    browser = guarded.client(headers=PAGE)
    assert operator.get(f"/studies/{store_steps.STUDY}/ledger").status_code == 200
    events = len(operator.get(f"/studies/{store_steps.STUDY}/ledger").json()["events"])
    without_audit(guarded)
    answer = operator.get(LOOK)
    assert "audit log" in problem(answer, 503)
    assert int(answer.headers["retry-after"]) > 0
    assert store_steps.SERIES not in answer.text
    problem(operator.post(f"/deliveries/{guarded.delivery}/retry"), 503)
    assert browser.post("/login", data={"key": guarded.key(name="b")}).status_code >= 500
    with guarded.maker() as session:
        assert session.scalar(text("SELECT count(*) FROM events")) == events
        assert session.scalar(text("SELECT count(*) FROM access_sessions")) == 0
    assert operator.get("/metrics").status_code == 200


def test_a_row_of_the_audit_log_cannot_be_changed(guarded: Site) -> None:
    guarded.client(guarded.key()).get(LOOK)
    for statement in ("UPDATE audit SET who = 'x'", "DELETE FROM audit"):
        with pytest.raises(DBAPIError, match="append-only"), guarded.maker.begin() as session:
            session.execute(text(statement))


def test_an_administrator_reads_the_audit_log_in_pages(guarded: Site) -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    actor = audit.Actor(who="ann", role="viewer", address="10.0.0.5")
    with guarded.maker.begin() as session:
        for hour in range(7):
            at = now + timedelta(hours=hour)
            study = store_steps.STUDY if hour % 2 else None
            audit.append(actor, "look at study", study=study, now=at, session=session)
    admin = guarded.client(guarded.key(Role.ADMIN, name="root"))
    seen: list[int] = []
    path = "/audit?who=ann&limit=3"
    while path:
        page = admin.get(path).json()
        seen += [item["id"] for item in page["items"]]
        path = page["next"]
    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == 7
    of_study = admin.get("/audit", params={"study": store_steps.STUDY, "who": "ann"}).json()
    assert len(of_study["items"]) == 3
    since = admin.get("/audit", params={"since": "2026-05-01T05:00:00+00:00", "who": "ann"}).json()
    assert len(since["items"]) == 2
    assert since["items"][0]["address"] == "10.0.0.5"
    for wrong in ("since=abc", "since=9999-12-31T23:59:59-14:00", "study=x", "limit=0"):
        problem(admin.get(f"/audit?{wrong}"), 422)
    assert admin.get("/audit", params={"who": "\0"}).json()["items"] == []


@steps.sqlite_only
def test_where_nobody_is_asked_everything_is_recorded_as_local(
    settings: Settings, maker: sessionmaker[Session]
) -> None:
    with site(settings, maker) as open_site:
        client = open_site.client()
        assert client.get("/whoami").json() == {"name": "local", "role": "admin", "csrf": ""}
        client.get(LOOK)
        assert client.get("/audit").status_code == 200
        assert client.get("/login?next=/jobs").headers["location"] == "/jobs"
        assert ("local", "look at study", store_steps.STUDY) in open_site.rows()


@steps.sqlite_only
def test_what_came_through_a_proxy_is_not_taken_for_this_machine(
    settings: Settings, maker: sessionmaker[Session]
) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.7"}
    with site(settings, maker) as open_site:
        told = problem(open_site.client(headers=forwarded).get(LOOK), 403)
        assert "HIPSCORE_HTTP_PROXIES" in told
        assert open_site.client(headers=forwarded).get("/healthz").status_code == 200


@steps.sqlite_only
@pytest.mark.parametrize("proxies", ((servers.LOOPBACK,), ("10.0.0.0/8",)))
def test_only_a_named_proxy_is_believed(
    settings: Settings, maker: sessionmaker[Session], proxies: tuple[str, ...]
) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    with site(settings.model_copy(update={"http_proxies": proxies}), maker) as running:
        key = running.key()
        running.client(key, headers=forwarded).get(LOOK)
        cookie = running.client(headers=forwarded).post("/login", data={"key": key})
        believed = proxies == (servers.LOOPBACK,)
        assert running.last().address == ("203.0.113.7" if believed else servers.LOOPBACK)
        assert ("Secure" in cookie.headers["set-cookie"]) is believed
        assert ("strict-transport-security" in cookie.headers) is believed


@steps.sqlite_only
def test_keys_and_audit_on_the_command_line(
    settings: Settings, maker: sessionmaker[Session], tmp_path: Path
) -> None:
    environment = {
        "HIPSCORE_DATABASE_URL": settings.database,
        "HIPSCORE_DATA_DIR": str(tmp_path),
    }

    def hipscore(*arguments: str, code: int = 0) -> str:
        answer = CliRunner(env=environment).invoke(group, list(arguments))
        assert answer.exit_code == code, answer.output
        return answer.stdout if code == 0 else answer.stderr

    assert "hipscore keys create" in hipscore("keys", "list")
    key = hipscore("keys", "create", "ann", "--role", "viewer", "--days", "30").strip()
    assert access.well_formed(key)
    assert "there is or was a key ann" in hipscore(
        "keys", "create", "ann", "--role", "admin", code=1
    )
    assert "Invalid value for '--role'" in hipscore("keys", "create", "b", "--role", "x", code=2)
    listed = hipscore("keys", "list")
    assert "ann   viewer  valid" in listed
    assert key not in listed
    assert key[5:20] not in hipscore("keys", "list", "--json")
    hipscore("keys", "revoke", "ann")
    assert "revoked" in hipscore("keys", "list")
    assert "there is no key bob" in hipscore("keys", "revoke", "bob", code=1)
    told = hipscore("audit", "--who", "command line")
    assert "create key" in told
    assert "revoke key" in told
    assert "os_user=" in told
    assert key not in told
    assert '"action": "revoke key"' in hipscore("audit", "--json", "--limit", "1")
    with maker.begin() as session:
        _, deliveries = store_steps.a_scored_job(session=session)
    hipscore("retry", "--delivery", str(deliveries[0]))
    retried = hipscore("audit", "--study", store_steps.STUDY)
    assert "retry delivery" in retried
    assert f"delivery_id={deliveries[0]}" in retried
    assert "nothing is recorded" in hipscore("audit", "--since", "2999-01-01")


@steps.sqlite_only
def test_a_search_by_form_is_a_look_that_a_viewer_may_take(guarded: Site) -> None:
    viewer = guarded.client(guarded.key(name="ann"))
    viewer.post("/fhir/Observation/_search", data={"patient": "DOE^JOHN"})
    assert guarded.rows()[-1][:2] == ("ann", "search")
    assert "DOE" not in str(guarded.last().detail)
