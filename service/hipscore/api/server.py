"""The process ``hipscore serve``: the application behind uvicorn."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import uvicorn

from hipscore.api.app import create_app
from hipscore.settings import Settings


class ApiError(Exception):
    """The API cannot start; the message says why and what to do."""


def run_api(settings: Settings, *, ready: Callable[[int], None] | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Parameters
    ----------
    settings
        Where to listen, the database, the broker and the data directory.
    ready
        Called with the port once connections are accepted (they wait for the application).

    Raises
    ------
    ApiError
        If the address cannot be bound.
    """
    with _bind(settings) as listening:
        if ready is not None:
            ready(listening.getsockname()[1])
        config = uvicorn.Config(
            create_app(settings),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _bind(settings: Settings) -> socket.socket:
    where = f"{settings.http_host} port {settings.http_port}"
    try:
        return socket.create_server(
            (settings.http_host, settings.http_port),
            family=socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET,
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            msg = f"{where} is taken; stop what listens there or set HIPSCORE_HTTP_PORT"
        else:
            msg = f"cannot listen on {where}: {error.strerror or error}"
        raise ApiError(msg) from error
