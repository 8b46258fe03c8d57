"""The API behind a real uvicorn, in this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Literal

import uvicorn

from hipscore.api.app import create_app
from hipscore.settings import Settings
from tests import servers


@contextlib.contextmanager
def serving(settings: Settings, *, ws: Literal["none", "auto"] = "none") -> Iterator[str]:
    """Run the API on its port while inside; its base URL. ``ws`` is for web-sockets."""
    config = uvicorn.Config(
        create_app(settings),
        host=servers.LOOPBACK,
        port=settings.http_port,
        log_config=None,
        ws=ws,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        servers.wait_until(lambda: server.started, what="the API is up")
        yield f"http://{servers.LOOPBACK}:{settings.http_port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
