"""``listen``, ``work``, ``beat``, ``serve``: one process each, until SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from hipscore.cli.common import load_settings, start
from hipscore.settings import Settings


def _ready_schema(settings: Settings) -> None:
    """End with one line unless the database has the schema of this version."""
    from hipscore.domain import Transient
    from hipscore.store import engine as database

    try:
        engine = database.connect(settings.database)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    try:
        current = database.at_head(engine)
    except Exception as error:
        reason = Transient(type(error).__name__)
        msg = f"the database cannot be reached ({reason}); check HIPSCORE_DATABASE_URL"
        raise click.ClickException(msg) from error
    finally:
        engine.dispose()
    if not current:
        msg = "the database schema is not up to date; run: hipscore db upgrade"
        raise click.ClickException(msg)


@click.command()
@click.option("--host", "dicom_host", help="Address to bind to (HIPSCORE_DICOM_HOST).")
@click.option("--port", "dicom_port", type=int, help="Port to bind to (HIPSCORE_DICOM_PORT).")
def listen(dicom_host: str | None, dicom_port: int | None) -> None:
    """Run the DICOM listener: C-ECHO and C-STORE of MR images."""
    from hipscore.inference import BundleError, open_bundle
    from hipscore.listener import ListenerError, serve

    settings = load_settings(dicom_host=dicom_host, dicom_port=dicom_port)
    start(settings)
    _ready_schema(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        serve(settings, card=open_bundle(settings.bundle_dir).card, stop=stop)
    except (BundleError, ListenerError) as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.option("--concurrency", type=click.IntRange(1), default=1, help="Worker processes.")
def work(concurrency: int) -> None:
    """Run a worker: analyses series and delivers results."""
    from hipscore.inference import BundleError
    from hipscore.worker import run_worker

    settings = load_settings()
    start(settings)
    _ready_schema(settings)
    try:
        code = run_worker(settings, concurrency)
    except BundleError as error:
        raise click.ClickException(str(error)) from error
    raise click.exceptions.Exit(code)


@click.command()
def beat() -> None:
    """Run the clock that wakes the reaper (one per installation)."""
    from hipscore.worker import run_beat

    settings = load_settings()
    start(settings)
    Path(settings.data_dir).mkdir(parents=True, exist_ok=True)
    run_beat(settings)


@click.command()
@click.option("--host", "http_host", help="Address to bind to (HIPSCORE_HTTP_HOST).")
@click.option("--port", "http_port", type=int, help="Port to bind to (HIPSCORE_HTTP_PORT).")
def serve(http_host: str | None, http_port: int | None) -> None:
    """Run the REST API."""
    from hipscore.api import ApiError, run_api

    settings = load_settings(http_host=http_host, http_port=http_port)
    start(settings)
    _ready_schema(settings)
    try:
        run_api(settings)
    except ApiError as error:
        raise click.ClickException(str(error)) from error
