"""The process ``hipscore serve``: the application behind uvicorn."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from hipscore.api.app import create_app
from hipscore.api.trail import Trail, Unrecorded
from hipscore.domain import Transient
from hipscore.settings import Settings
from hipscore.store import access as keys
from hipscore.store import engine as database
from hipscore.store.audit import Actor

log = logging.getLogger(__name__)


class ApiError(Exception):
    """The API cannot start; the message says why and what to do."""


def run_api(settings: Settings, *, ready: Callable[[int], None] | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Parameters
    ----------
    settings
        Where to listen, certificate and key, the database, the broker and the data directory.
    ready
        Called with the port once connections are accepted (they wait for the application).

    Raises
    ------
    ApiError
        If the address cannot be bound, or the certificate cannot be used.
    """
    check_certificate(settings)
    with _bind(settings) as listening:
        if ready is not None:
            ready(listening.getsockname()[1])
        app = create_app(settings)
        _record_start(app, settings)
        uvicorn.Server(configuration(app, settings)).run(sockets=[listening])


def configuration(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the application. Lines of its own about requests would have queries."""
    return uvicorn.Config(
        app,
        host=settings.http_host,
        port=settings.http_port,
        log_config=None,
        access_log=False,
        log_level="warning",
        server_header=False,
        # without a word about proxies nobody is believed, not even this machine
        proxy_headers=bool(settings.http_proxies),
        forwarded_allow_ips=list(settings.http_proxies),
        ssl_certfile=settings.http_certificate,
        ssl_keyfile=settings.http_private_key,
        timeout_graceful_shutdown=5,
    )


def check_certificate(settings: Settings) -> None:
    """Make sure that certificate and private key can be used, or that there is neither.

    Raises
    ------
    ApiError
        If one is missing, unreadable, encrypted, or does not belong to the other.
    """
    chain, key = settings.http_certificate, settings.http_private_key
    if chain is None and key is None:
        return
    if chain is None or key is None:
        missing = "HIPSCORE_HTTP_CERTIFICATE" if chain is None else "HIPSCORE_HTTP_PRIVATE_KEY"
        msg = f"{missing} is not set: HTTPS needs a certificate and its private key, HTTP neither"
        raise ApiError(msg)
    for name, path in (("HTTP_CERTIFICATE", chain), ("HTTP_PRIVATE_KEY", key)):
        if (reason := _unreadable(path)) is not None:
            msg = f"HIPSCORE_{name}: {path} cannot be read: {reason}"
            raise ApiError(msg)
    asked = False

    def password() -> str:
        nonlocal asked
        asked = True
        return ""

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key, password)
    except (ssl.SSLError, ValueError, OSError) as error:
        if asked:
            reason = "the private key is encrypted; store it without a password, mode 0600"
        elif getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            reason = "the private key belongs to another certificate"
        else:
            reason = "one of them is not PEM (the certificate comes first in its file)"
        msg = f"HIPSCORE_HTTP_CERTIFICATE {chain} and HIPSCORE_HTTP_PRIVATE_KEY {key}: {reason}"
        raise ApiError(msg) from error


def _unreadable(path: Path) -> str | None:
    try:
        path.read_bytes()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _record_start(app: FastAPI, settings: Settings) -> None:
    """Who is let in is part of the audit log."""
    access = "keys" if settings.keys_demanded else "open"
    secure = settings.http_certificate is not None
    log.info("access: %s; %s", access, "HTTPS" if secure else "HTTP")
    actor = Actor(who="service", role="")
    try:
        Trail(app.state.desk.writers).act(
            actor, "start", detail={"access": access, "https": secure}
        )
    except Unrecorded:
        log.warning("the start is not recorded")
    if settings.keys_demanded and not _any_key(app):
        log.warning("a key is demanded, and there is none: hipscore keys create NAME --role admin")


def _any_key(app: FastAPI) -> bool:
    """Whether anybody can get in; who cannot be asked is not in the way."""
    try:
        with database.transaction(app.state.desk.readers) as session:
            return keys.anyone(now=datetime.now(UTC), session=session)
    except (Transient, SQLAlchemyError):
        return True


def _bind(settings: Settings) -> socket.socket:
    where = f"{settings.http_host} port {settings.http_port}"
    try:
        listening = socket.create_server(
            (settings.http_host, settings.http_port),
            family=socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET,
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            msg = f"{where} is taken; stop what listens there or set HIPSCORE_HTTP_PORT"
        else:
            msg = f"cannot listen on {where}: {error.strerror or error}"
        raise ApiError(msg) from error
    # inherited by every connection; asyncio does so only for sockets that it makes itself
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
