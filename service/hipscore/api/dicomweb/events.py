"""Subscriptions to work items, and the web-socket that brings their events (PS3.18 8.10, 11.10).

Nothing is lost while nobody is connected: a subscriber that comes back gets what it missed, at
least once. While somebody is connected, one look at the event table every tenth of a second
finds out for all of them, whichever process wrote the event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import (
    APIRouter,
    FastAPI,
    HTTPException,
    Query,
    Request,
    Response,
    WebSocket,
    WebSocketDisconnect,
)
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from hipscore.api.dicomweb.exchange import (
    Title,
    WorkitemUid,
    bad,
    base,
    checked_title,
    checked_uid,
)
from hipscore.api.dicomweb.query import filter_keys
from hipscore.api.shared import AtDesk, Desk
from hipscore.domain import Transient
from hipscore.procedure import reports
from hipscore.procedure.dataset import Malformed
from hipscore.procedure.reports import FILTERED
from hipscore.store import engine as database
from hipscore.store import subscriptions
from hipscore.store.moves import NotFound

#: how often the event table is looked at while somebody is connected, seconds
POLL_S = 0.1
#: pause when the database does not answer, seconds
PAUSE_S = 1.0
#: close code for a request that is not acceptable (RFC 6455 7.4.1)
_POLICY = 1008

_FAILS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the request is not one"},
    404: {"description": "no such work item or subscription"},
    503: {"description": "the database cannot be used right now"},
}


class Pulse:
    """Finds out about new events, for all who are connected to this process."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._horizon = subscriptions.Horizon()
        self._connected = 0
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Look at the event table while anybody is inside."""
        self._connected += 1
        if self._task is None:
            self._task = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            self._connected -= 1
            if not self._connected and self._task is not None:
                self._task.cancel()
                self._task = None

    async def beyond(self, seen: int) -> int:
        """Wait for events behind ``seen``; up to which one everything is there."""
        async with self._news:
            await self._news.wait_for(lambda: self._horizon.until > seen)
            return self._horizon.until

    async def _beat(self) -> None:
        while True:
            try:
                seen = await run_in_threadpool(self._look)
            except (Transient, SQLAlchemyError):
                await asyncio.sleep(PAUSE_S)
                continue
            if self._horizon.see(seen, time.monotonic()):
                async with self._news:
                    self._news.notify_all()
            await asyncio.sleep(POLL_S)

    def _look(self) -> subscriptions.Mark:
        with database.transaction(self._desk.readers) as session:
            return subscriptions.mark(session=session)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Tell the subscribers that the worklist is up again (PS3.4 CC.2.4.3)."""
    desk: Desk = app.state.desk
    app.state.pulse = Pulse(desk)
    with contextlib.suppress(Transient, SQLAlchemyError):  # the requests will say it
        await run_in_threadpool(_restarted, desk)
    yield


def _restarted(desk: Desk) -> None:
    with database.transaction(desk.writers) as session:
        subscriptions.restarted(now=datetime.now(UTC), session=session)


router = APIRouter(tags=["UPS-RS"], lifespan=_lifespan)


@router.post(
    "/dicomweb/workitems/{workitem}/subscribers/{aet}",
    status_code=HTTPStatus.CREATED,
    response_class=Response,
    responses={
        201: {
            "description": "subscribed; Content-Location is the web-socket to open",
            "headers": {"Content-Location": {"schema": {"type": "string"}}},
            "content": {},
        },
        **_FAILS,
    },
)
def subscribe(
    *,
    workitem: WorkitemUid,
    aet: Title,
    request: Request,
    desk: AtDesk,
    deletionlock: Annotated[
        str | None, Query(description="true or false; items are never deleted")
    ] = None,
    filter: Annotated[  # noqa: A002 - the name that the standard gives it
        str | None, Query(description="keys of a filtered subscription, attribute=value,…")
    ] = None,
) -> Response:
    """Subscribe to a work item, or to the worklist.

    `1.2.840.10008.5.1.4.34.5` are all items, `1.2.840.10008.5.1.4.34.5.1` those that match
    `filter`. What happens comes over the web-socket that Content-Location names.
    """
    uid, title = checked_uid(workitem), checked_title(aet)
    if deletionlock not in {None, "true", "false"}:
        raise bad("deletionlock is true or false")
    try:
        keys = filter_keys(filter or "") if uid == FILTERED else []
    except Malformed as error:
        raise bad(error) from None
    with database.transaction(desk.writers) as session:
        known = subscriptions.subscribe(
            title,
            uid,
            deletion_lock=deletionlock == "true",
            keys=keys,
            now=datetime.now(UTC),
            session=session,
        )
    if not known:
        msg = f"there is no work item {uid}"
        raise NotFound(msg)
    scheme = "wss" if request.url.scheme == "https" else "ws"
    host = request.headers.get("host", "localhost")
    where = f"{scheme}://{host}{base(request)}/subscribers/{quote(title, safe='')}"
    return Response(status_code=HTTPStatus.CREATED, headers={"Content-Location": where})


@router.delete(
    "/dicomweb/workitems/{workitem}/subscribers/{aet}",
    response_class=Response,
    responses={200: {"description": "unsubscribed", "content": {}}, **_FAILS},
)
def unsubscribe(workitem: WorkitemUid, aet: Title, desk: AtDesk) -> Response:
    """End a subscription; to all items, every subscription of the subscriber."""
    uid, title = checked_uid(workitem), checked_title(aet)
    with database.transaction(desk.writers) as session:
        ended = subscriptions.unsubscribe(title, uid, now=datetime.now(UTC), session=session)
    if not ended:
        raise _not_subscribed(uid)
    return Response(status_code=HTTPStatus.OK)


@router.post(
    "/dicomweb/workitems/{workitem}/subscribers/{aet}/suspend",
    response_class=Response,
    responses={200: {"description": "suspended", "content": {}}, **_FAILS},
)
def suspend(workitem: WorkitemUid, aet: Title, desk: AtDesk) -> Response:
    """Hear of no new items; only of a subscription to the worklist."""
    uid, title = checked_uid(workitem), checked_title(aet)
    if uid not in subscriptions.WORKLISTS:
        raise bad("only a subscription to the worklist is suspended; unsubscribe from one item")
    with database.transaction(desk.writers) as session:
        known = subscriptions.suspend(title, uid, session=session)
    if not known:
        raise _not_subscribed(uid)
    return Response(status_code=HTTPStatus.OK)


@router.websocket("/dicomweb/subscribers/{aet}")
async def open_channel(socket: WebSocket, aet: str) -> None:
    """Send a subscriber its events, each as one data set, from the first it has not heard."""
    try:
        title = checked_title(aet)
    except HTTPException:
        await socket.close(_POLICY)
        return
    await socket.accept()
    pulse: Pulse = socket.app.state.pulse
    async with pulse.beating():
        tasks = {
            asyncio.create_task(_send(socket, title, pulse)),
            asyncio.create_task(_left(socket)),
        }
        done, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for task in done:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it left meanwhile
                task.result()


async def _left(socket: WebSocket) -> None:
    """Wait until the subscriber goes; what it says means nothing."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _send(socket: WebSocket, subscriber: str, pulse: Pulse) -> None:
    desk: Desk = socket.app.state.desk
    seen = -1
    while True:
        until = await pulse.beyond(seen)
        while seen < until:
            try:
                page = await run_in_threadpool(_pending, desk, subscriber, seen, until)
                for event in page.events:
                    message = reports.message(
                        event.id, event.workitem_uid, event.event_type, event.body["report"]
                    )
                    await socket.send_text(json.dumps(message))
                if page.events:
                    await run_in_threadpool(_heard, desk, subscriber, page.until)
            except (Transient, SQLAlchemyError):
                await asyncio.sleep(PAUSE_S)
                continue
            seen = page.until


def _pending(desk: Desk, subscriber: str, after: int, until: int) -> subscriptions.Pending:
    with database.transaction(desk.readers) as session:
        return subscriptions.pending(subscriber, after=after, until=until, session=session)


def _heard(desk: Desk, subscriber: str, until: int) -> None:
    with database.transaction(desk.writers) as session:
        subscriptions.heard(subscriber, until, session=session)


def _not_subscribed(uid: str) -> NotFound:
    return NotFound(f"there is no such subscription to {uid}")
