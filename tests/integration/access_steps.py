"""An API with keys behind a real server, and those who call it."""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from hipscore.api import create_app
from hipscore.api.server import configuration
from hipscore.settings import Settings
from hipscore.store import access, audit
from hipscore.store.access import Role
from hipscore.store.tables import AuditEvent
from tests import servers
from tests.integration import store_steps

PAGE = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
LOOK = f"/studies/{store_steps.STUDY}"


@dataclass(kw_only=True)
class Site:
    """One running API, and a database with a scored study."""

    settings: Settings
    maker: sessionmaker[Session]
    app: FastAPI
    base: str
    job: int
    delivery: int
    context: ssl.SSLContext | bool = False
    clients: list[httpx.Client] = field(default_factory=list)

    def client(self, key: str | None = None, **more: Any) -> httpx.Client:
        """A program, with a key or without; or a browser before it logs in."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        made = httpx.Client(
            base_url=self.base, trust_env=False, timeout=30.0, verify=self.context,
            headers={**headers, **more.pop("headers", {})}, **more,
        )  # fmt: skip
        self.clients.append(made)
        return made

    def key(self, role: Role = Role.VIEWER, name: str | None = None, **more: Any) -> str:
        """A new key."""
        now = more.pop("now", datetime.now(UTC))
        with self.maker.begin() as session:
            return access.create(
                role.value if name is None else name, role, now=now, session=session, **more
            )

    def browser(self, key: str) -> httpx.Client:
        """A browser that has logged in."""
        browser = self.client(headers=PAGE)
        answer = browser.post("/login", data={"key": key})
        assert answer.status_code == 303, answer.text
        return browser

    def csrf(self, browser: httpx.Client) -> str:
        """The token that a page gives to this browser."""
        return str(browser.get("/whoami").json()["csrf"])

    def rows(self) -> list[tuple[str, str, str | None]]:
        """Who, what and which study: the audit log, oldest first."""
        with self.maker() as session:
            found = session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all()
        return [(each.who, each.action, each.study_instance_uid) for each in found]

    def last(self) -> AuditEvent:
        """The newest row of the audit log."""
        with self.maker() as session:
            return audit.events(limit=1, session=session)[0]


@contextlib.contextmanager
def site(settings: Settings, maker: sessionmaker[Session], **tls: Any) -> Iterator[Site]:
    """The API behind uvicorn as ``hipscore serve`` runs it, with a route that shows the visitor."""
    app = create_app(settings)

    @app.get("/whoami")
    def whoami(request: Request) -> dict[str, Any]:
        visitor = request.state.visitor
        return {"name": visitor.name, "role": visitor.role, "csrf": visitor.csrf}

    @app.get("/defect")
    def defect() -> None:
        raise RuntimeError

    @app.websocket("/socket")
    async def socket(connection: WebSocket) -> None:
        await connection.accept()
        await connection.send_text(connection.state.visitor.name)
        await connection.close()

    with maker.begin() as session:
        job, deliveries = store_steps.a_scored_job(session=session)
    server = uvicorn.Server(configuration(app, settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    scheme = "https" if settings.http_certificate else "http"
    running = Site(
        settings=settings, maker=maker, app=app, job=job, delivery=deliveries[0],
        base=f"{scheme}://{servers.LOOPBACK}:{settings.http_port}", **tls,
    )  # fmt: skip
    try:
        servers.wait_until(lambda: server.started, what="the API is up")
        yield running
    finally:
        for client in running.clients:
            client.close()
        server.should_exit = True
        thread.join(30)


def problem(answer: httpx.Response, status: int) -> str:
    """What a problem document says, or to a browser the page in its place."""
    assert answer.status_code == status, answer.text
    if "text/html" in answer.request.headers["accept"]:
        assert answer.headers["content-type"].startswith("text/html")
        (text,) = re.findall(r'<p role="alert">(.*?)</p>', answer.text)
        return str(text)
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["detail"])


def raw(site: Site, method: str, path: str, *headers: str) -> tuple[int, str]:
    """Status and text of an answer to a request that no client library has touched.

    A connection that becomes a web-socket is left there: its end would be that of the server,
    which waits for ours.
    """
    import socket

    with socket.create_connection((servers.LOOPBACK, site.settings.http_port), 10) as connection:
        lines = (f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers)
        connection.sendall("\r\n".join((*lines, "", "")).encode("latin-1"))
        answer = b""
        while not (answer.startswith(b"HTTP/1.1 101 ") and b"\r\n\r\n" in answer) and (
            more := connection.recv(65536)
        ):
            answer += more
    return int(answer.split(b" ", 2)[1]), answer.decode("latin-1")
