"""Events of work items over the web-socket: who hears what, and that nothing is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset
from sqlalchemy.orm import Session, sessionmaker
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from hipscore import worker
from hipscore.procedure.dataset import Attributes, code, data_set, value, values
from hipscore.procedure.rules import PROGRESS
from hipscore.reporting import uids
from hipscore.settings import Settings
from hipscore.store import engine, subscriptions
from hipscore.store.subscriptions import Horizon, Mark
from hipscore.store.tables import Subscription, WorkItemEvent
from tests import servers
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration import workitem_steps as ups
from tests.integration.delivery_steps import study

STATE, CANCEL, PROGRESSED, SCP, ASSIGNED = 1, 2, 3, 4, 5


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with ups.serving(settings) as client:
        yield client


def subscribe(api: httpx.Client, uid: str, aet: str = "WATCHER", **query: str) -> str:
    """Subscribe; the address of the web-socket."""
    answer = api.post(f"/workitems/{uid}/subscribers/{aet}", params=query)
    assert answer.status_code == 201, answer.text
    return answer.headers["content-location"]


def listen(where: str, **more: Any) -> ClientConnection:
    """Open the web-socket."""
    opened: ClientConnection = connect(where, proxy=None, open_timeout=10, **more)
    return opened


def heard(socket: ClientConnection, number: int, seconds: float = 10.0) -> list[Attributes]:
    """The next events; each is a data set that pydicom takes, with what a command has."""
    events = []
    for _ in range(number):
        event = json.loads(socket.recv(timeout=seconds))
        Dataset.from_json(event)
        assert value(event, "AffectedSOPClassUID") == "1.2.840.10008.5.1.4.34.6.1"
        events.append(event)
    return events


def silent(socket: ClientConnection, seconds: float = 0.6) -> bool:
    """Whether nothing more comes."""
    try:
        socket.recv(timeout=seconds)
    except TimeoutError:
        return True
    return False


def short(events: list[Attributes]) -> list[tuple[str, int, str | None]]:
    """Item, type and state of each event."""
    return [
        (
            value(each, "AffectedSOPInstanceUID"),
            value(each, "EventTypeID"),
            value(each, "ProcedureStepState"),
        )
        for each in events
    ]


def test_a_subscriber_hears_the_whole_life_of_an_item(api: httpx.Client) -> None:
    uid = ups.create(api)
    where = subscribe(api, uid)
    assert where == f"ws://{api.base_url.host}:{api.base_url.port}/dicomweb/subscribers/WATCHER"
    with listen(where) as socket:
        (initial,) = heard(socket, 1)
        assert short([initial]) == [(uid, STATE, "SCHEDULED")]
        assert value(initial, "InputReadinessState") == "READY"
        station = data_set(ScheduledStationNameCodeSequence=[code("WS1", "99TEST", "One")])
        ups.send(api, "POST", f"/workitems/{uid}", station)
        ups.to_state(api, uid, "IN PROGRESS")
        half = data_set(**{PROGRESS: [data_set(ProcedureStepProgress="50")]})
        ups.send(api, "POST", f"/workitems/{uid}?1.2.3", half)
        api.post(f"/workitems/{uid}/cancelrequest")
        ups.to_state(api, uid, "CANCELED")
        events = heard(socket, 5)
        assert short(events) == [
            (uid, ASSIGNED, None),
            (uid, STATE, "IN PROGRESS"),
            (uid, PROGRESSED, None),
            (uid, CANCEL, None),
            (uid, STATE, "CANCELED"),
        ]
        assert values(events[2], PROGRESS)[0] == half["00741002"]["Value"][0]
        assert value(events[3], "RequestingAE") == "UPS-RS"
        ups.create(api)
        assert silent(socket)


def test_the_performer_hears_why_it_should_stop(api: httpx.Client) -> None:
    uid = ups.create(api)
    with listen(subscribe(api, uid)) as socket:
        ups.to_state(api, uid, "IN PROGRESS")
        why = data_set(ReasonForCancellation="twice", ContactDisplayName="Desk")
        ups.send(api, "POST", f"/workitems/{uid}/cancelrequest", why)
        *_, event = heard(socket, 3)
        assert value(event, "ReasonForCancellation") == "twice"
        assert value(event, "ContactDisplayName") == "Desk"


def test_an_event_comes_within_a_quarter_of_a_second(api: httpx.Client) -> None:
    uid = ups.create(api)
    waits = []
    with listen(subscribe(api, uid)) as socket:
        heard(socket, 1)
        for number in range(10):
            change = data_set(InputReadinessState=("INCOMPLETE", "READY")[number % 2])
            ups.send(api, "POST", f"/workitems/{uid}", change)
            begun = time.monotonic()
            heard(socket, 1)
            waits.append(time.monotonic() - begun)
    assert sorted(waits)[5] < 0.25, waits


def test_who_comes_back_gets_what_was_missed_and_nothing_twice(
    settings: Settings, api: httpx.Client
) -> None:
    uid = ups.create(api)
    where = subscribe(api, uid)
    ups.to_state(api, uid, "IN PROGRESS")
    with listen(where) as socket:
        assert short(heard(socket, 2)) == [(uid, STATE, "SCHEDULED"), (uid, STATE, "IN PROGRESS")]
        # what was sent the moment the line broke may come again: then nobody knows that it came
        newest = steps.rows(settings, WorkItemEvent)[-1].id
        servers.wait_until(
            lambda: steps.rows(settings, Subscription)[0].sent_id == newest, what="it is noted"
        )
    ups.to_state(api, uid, "CANCELED")
    with listen(where) as socket:
        assert short(heard(socket, 1)) == [(uid, STATE, "CANCELED")]
        assert silent(socket)


def test_nothing_is_lost_over_a_restart_and_the_restart_is_told(settings: Settings) -> None:
    with ups.serving(settings) as api:
        uid = ups.create(api)
        where = subscribe(api, uid)
        ups.to_state(api, uid, "IN PROGRESS")
    with ups.serving(settings), listen(where) as socket:
        *states, restart = heard(socket, 3)
        assert short(states) == [(uid, STATE, "SCHEDULED"), (uid, STATE, "IN PROGRESS")]
        assert value(restart, "EventTypeID") == SCP
        assert value(restart, "SCPStatus") == "RESTARTED"
        assert value(restart, "SubscriptionListStatus") == "WARM START"


def test_a_global_subscriber_hears_of_new_items_until_it_suspends(api: httpx.Client) -> None:
    old = ups.create(api)
    with listen(subscribe(api, ups.GLOBAL)) as socket:
        station = [code("WS1", "99TEST", "One")]
        new = ups.create(api, ups.scheduled(ScheduledStationNameCodeSequence=station))
        assert short(heard(socket, 2)) == [(new, STATE, "SCHEDULED"), (new, ASSIGNED, None)]
        ups.to_state(api, old, "IN PROGRESS")
        assert short(heard(socket, 1)) == [(old, STATE, "IN PROGRESS")]

        suspend = f"/workitems/{ups.GLOBAL}/subscribers/WATCHER/suspend"
        assert api.post(suspend).status_code == 200
        ups.create(api)
        ups.to_state(api, new, "IN PROGRESS")
        assert short(heard(socket, 1)) == [(new, STATE, "IN PROGRESS")]

        assert api.delete(f"/workitems/{new}/subscribers/WATCHER").status_code == 200
        ups.to_state(api, new, "CANCELED")
        ups.to_state(api, old, "CANCELED")
        assert short(heard(socket, 1)) == [(old, STATE, "CANCELED")]

        assert api.delete(f"/workitems/{ups.GLOBAL}/subscribers/WATCHER").status_code == 200
        assert api.delete(f"/workitems/{ups.GLOBAL}/subscribers/WATCHER").status_code == 404
        ups.create(api)
        assert silent(socket)


@steps.sqlite_only
def test_a_global_subscription_with_a_lock_begins_with_every_item(api: httpx.Client) -> None:
    items = [ups.create(api), ups.create(api)]
    with listen(subscribe(api, ups.GLOBAL, deletionlock="true")) as socket:
        assert short(heard(socket, 2)) == [(uid, STATE, "SCHEDULED") for uid in items]
        assert silent(socket)


def test_a_filtered_subscriber_hears_of_what_matches(api: httpx.Client) -> None:
    label: dict[str, Any] = {"ProcedureStepLabel": "Second look"}
    there = ups.create(api, ups.scheduled(**label))
    ups.create(api)
    wanted = "ProcedureStepLabel=Second*,ScheduledWorkitemCodeSequence.CodeValue=110001"
    with listen(subscribe(api, ups.FILTERED, filter=wanted)) as socket:
        assert short(heard(socket, 1)) == [(there, STATE, "SCHEDULED")]
        ups.create(api)
        new = ups.create(api, ups.scheduled(**label))
        assert short(heard(socket, 1)) == [(new, STATE, "SCHEDULED")]
        ups.send(api, "POST", f"/workitems/{new}", data_set(ProcedureStepLabel="Other"))
        ups.to_state(api, new, "IN PROGRESS")  # it matches no more, but is subscribed
        assert short(heard(socket, 1)) == [(new, STATE, "IN PROGRESS")]


@steps.sqlite_only
def test_subscriptions_that_make_no_sense_are_refused(api: httpx.Client) -> None:
    uid = ups.create(api)
    for method, path, status in (
        ("POST", f"/workitems/{ups.new_uid()}/subscribers/WATCHER", 404),
        ("POST", "/workitems/1..2/subscribers/WATCHER", 400),
        ("POST", f"/workitems/{uid}/subscribers/ABCDEFGHIJKLMNOPQ", 400),
        ("POST", f"/workitems/{uid}/subscribers/WATCHER?deletionlock=yes", 400),
        ("POST", f"/workitems/{ups.FILTERED}/subscribers/WATCHER", 400),
        ("POST", f"/workitems/{ups.FILTERED}/subscribers/WATCHER?filter=Nonsense=1", 400),
        ("DELETE", f"/workitems/{uid}/subscribers/WATCHER", 404),
        ("POST", f"/workitems/{uid}/subscribers/WATCHER/suspend", 400),
        ("POST", f"/workitems/{ups.GLOBAL}/subscribers/WATCHER/suspend", 404),
    ):
        answer = api.request(method, path)
        assert answer.status_code == status, path
        assert answer.headers["content-type"] == "application/problem+json"


@steps.sqlite_only
def test_the_web_page_of_another_site_cannot_open_the_channel(
    settings: Settings, api: httpx.Client
) -> None:
    where = subscribe(api, ups.create(api))
    with pytest.raises(InvalidStatus) as refused:
        listen(where, origin="https://evil.example")
    assert refused.value.response.status_code == 403
    with listen(where, origin=f"http://127.0.0.1:{settings.http_port}") as socket:
        heard(socket, 1)


def test_the_life_of_an_analysis_is_heard(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    truth, images = study()
    with listen(subscribe(api, ups.GLOBAL)) as socket:
        job = steps.received(settings, images, tmp_path / "scanner")
        uid = uids.derive(job.key, "ups")
        with steps.bench(settings, steps.knowing((truth, images))) as at:
            worker.analyse(job.id, at)
        assert short(heard(socket, 4)) == [
            (uid, STATE, "SCHEDULED"),
            (uid, ASSIGNED, None),
            (uid, STATE, "IN PROGRESS"),
            (uid, STATE, "COMPLETED"),
        ]


def test_many_subscribers_that_subscribe_at_once_are_one_each(api: httpx.Client) -> None:
    uid = ups.create(api)
    store_steps.at_once([lambda: subscribe(api, uid)] * 4)
    with listen(subscribe(api, uid)) as socket:
        assert short(heard(socket, 5)) == [(uid, STATE, "SCHEDULED")] * 5
        ups.to_state(api, uid, "IN PROGRESS")
        assert short(heard(socket, 1)) == [(uid, STATE, "IN PROGRESS")]
        assert silent(socket)


def test_an_event_that_is_committed_late_is_not_passed_over(
    maker: sessionmaker[Session], database: Any
) -> None:
    """PostgreSQL gives ids before the commit: a lower one can appear after a higher one."""
    readers, horizon = engine.readers(database), Horizon()

    def look() -> int:
        with engine.transaction(readers) as session:
            horizon.see(subscriptions.mark(session=session), time.monotonic())
        return horizon.until

    def tell(session: Session, uid: str) -> None:
        subscriptions.tell(uid, [ups.report()], now=ups.now(), session=session)
        session.flush()

    with engine.transaction(maker) as session:
        tell(session, "1.1")
    assert look() == 1
    if database.dialect.name == "sqlite":
        return  # one writer: ids appear in their order
    with maker() as slow:
        tell(slow, "1.2")
        with engine.transaction(maker) as session:
            tell(session, "1.3")
        assert [look() for _ in range(3)] == [1, 1, 1]
        slow.commit()
    assert max(look() for _ in range(3)) == 3


def test_the_horizon_does_not_wait_for_strangers_for_ever() -> None:
    horizon = Horizon()
    stuck = Mark(newest=5, oldest_open=100, next=200)
    assert not horizon.see(stuck, 0.0)
    assert not horizon.see(stuck, subscriptions.PATIENCE_S)
    assert horizon.see(stuck, subscriptions.PATIENCE_S + 1)
    assert horizon.until == 5
