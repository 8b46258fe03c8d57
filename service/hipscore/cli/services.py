"""``listen``, ``work``, ``beat``, ``serve``: one process each, until SIGTERM or SIGINT."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Sequence

import click

from hipscore.cli.common import load_settings, ready_database, ready_rules, start
from hipscore.settings import Settings


def _ready_schema(settings: Settings) -> None:
    """End with one line unless the rules can be read and the database has this schema."""
    ready_rules(settings)
    with ready_database(settings):
        pass


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
        card = open_bundle(settings.bundle_dir).card
        # What is loaded by now lives as long as the process. Looking through it for garbage
        # again and again would take a tenth of the time that an image takes.
        gc.collect()
        gc.freeze()
        serve(settings, card=card, stop=stop)
    except (BundleError, ListenerError) as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.option("--concurrency", type=click.IntRange(1), default=1, help="Worker processes.")
@click.option(
    "--queue",
    "queues",
    type=click.Choice(["analysis", "delivery"]),
    multiple=True,
    default=("analysis", "delivery"),
    show_default=True,
    help="What to serve; repeat for several. Run one worker for each, so that no dead PACS "
    "holds up an analysis.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "shared", "own"]),
    help="Whether the worker processes share one engine (HIPSCORE_ENGINE).",
)
def work(concurrency: int, queues: Sequence[str], engine: str | None) -> None:
    """Run a worker: analyses series and delivers results."""
    from hipscore.inference import BundleError
    from hipscore.worker import run_worker

    settings = load_settings(engine=engine)
    start(settings)
    _ready_schema(settings)
    # the processes of the worker would fail on it one after the other, for ever
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        code = run_worker(settings, concurrency, queues=tuple(dict.fromkeys(queues)))
    except BundleError as error:
        raise click.ClickException(str(error)) from error
    raise click.exceptions.Exit(code)


@click.command()
def beat() -> None:
    """Run the reaper: closes quiet series, takes work back from the dead, announces it.

    It works without the broker. One is enough; several do no harm.
    """
    from hipscore.inference import BundleError
    from hipscore.worker import run_beat

    settings = load_settings()
    start(settings)
    _ready_schema(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run_beat(settings, stop=stop)
    except BundleError as error:
        raise click.ClickException(str(error)) from error


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
