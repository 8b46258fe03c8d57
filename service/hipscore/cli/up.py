"""``up``: the whole service in one command, with an embedded database and broker by default."""

from __future__ import annotations

import signal
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from hipscore import broker, heartbeat
from hipscore.cli import supervise
from hipscore.cli.common import load_settings, only_one, ready_rules, start
from hipscore.domain import RESEARCH_USE
from hipscore.settings import Settings

READY_SECONDS = 60.0
#: one worker for each queue: a PACS that is down holds up no analysis
WORKERS = {"worker": ("--queue", "analysis"), "delivery": ("--queue", "delivery")}


@click.command()
@click.option("--workers", type=click.IntRange(1), default=1, help="Analyses at the same time.")
def up(workers: int) -> None:
    """Run all processes: listener, workers, reaper, API.

    Without HIPSCORE_DATABASE_URL and HIPSCORE_BROKER_URL an SQLite database and a Valkey
    broker live in the data directory. Processes that end are started again. Stop with Ctrl-C or
    SIGTERM: open associations, the running analysis and the running delivery get up to a
    minute to finish; what does not is done again at the next start.
    """
    settings = load_settings()
    start(settings)
    ready_rules(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    began = time.monotonic()
    with running(settings, workers=workers) as supervisor:
        click.echo(_summary(settings))
        click.echo(f"ready for images after {time.monotonic() - began:.1f} s")
        loading = True
        while not stop.wait(0.2 if loading else 1.0):
            supervisor.check()
            if loading and warm(settings, supervisor):
                loading = False
                click.echo(f"networks loaded after {time.monotonic() - began:.1f} s")
        click.echo("stopping", err=True)


@contextmanager
def running(
    settings: Settings, *, workers: int = 1, log_dir: Path | None = None
) -> Iterator[supervise.Supervisor]:
    """Run all processes while inside; they are ready when the body starts.

    Raises
    ------
    click.ClickException
        If another instance uses the data directory, a port is taken, or a process does
        not become ready.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with only_one(settings.data_dir):
        _check_ports(settings)
        _check_networks(settings)
        supervisor = supervise.Supervisor(
            environment=supervise.environment(settings), log_dir=log_dir
        )
        try:
            if settings.broker_embedded:
                supervisor.add("broker", _broker_command(settings))
            _tables(settings)
            if settings.broker_embedded:
                _wait_for_broker(settings)
            supervisor.add("api", supervise.service("serve"))
            for number in range(1, settings.listeners + 1):
                name = "listener" if number == 1 else f"listener-{number}"
                supervisor.add(name, supervise.service("listen"))
            _wait_until_ready(settings, supervisor)
            # images are taken from here on; what works on them warms up meanwhile
            supervisor.add("beat", supervise.service("beat"))
            for name, arguments in WORKERS.items():
                count = str(workers) if name == "worker" else "1"
                supervisor.add(
                    name,
                    supervise.service("work", *arguments, "--concurrency", count),
                    patience=supervise.WORKER_STOP_SECONDS,
                )
            yield supervisor
        finally:
            supervisor.stop()


def warm(settings: Settings, supervisor: supervise.Supervisor) -> bool:
    """Whether every process of every worker has loaded what it works with."""
    beats = heartbeat.read(heartbeat.folder(settings.data_dir))
    ready = {each.pid for each in beats if each.alive and each.warm == each.processes}
    return all(supervisor.pid(name) in ready for name in WORKERS)


def _broker_command(settings: Settings) -> list[str]:
    try:
        folder = broker.private(settings.broker_dir)
        broker.private(settings.broker_socket.parent)
        return broker.command(settings.broker_socket, folder)
    except broker.BrokerError as error:
        raise click.ClickException(str(error)) from error


def _wait_for_broker(settings: Settings) -> None:
    try:
        broker.wait(settings.broker_socket)
    except broker.BrokerError as error:
        msg = f"{error}; {settings.broker_dir / 'valkey.log'} may say why"
        raise click.ClickException(msg) from error


def _tables(settings: Settings) -> None:
    """Make the tables of a database that has none; refuse one of another version.

    Nobody has backed up what an upgrade changes for good, unless they ran it themselves.
    """
    from hipscore.store import engine as database

    try:
        engine = database.connect(settings.database)
        try:
            schema = database.schema(engine)
        finally:
            engine.dispose()
        if schema.state is database.SchemaState.EMPTY:
            database.upgrade(settings.database)
            return
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    except Exception as error:
        msg = f"the database cannot be used: {type(error).__name__}; check HIPSCORE_DATABASE_URL"
        raise click.ClickException(msg) from error
    if not schema.current:
        raise click.ClickException(schema.text)


def _check_ports(settings: Settings) -> None:
    for name, host, port in (
        ("DICOM", settings.dicom_host, settings.dicom_port),
        ("HTTP", settings.http_host, settings.http_port),
    ):
        if supervise.port_open(_reachable(host), port):
            msg = f"{name} port {port} on {host} is taken; set HIPSCORE_{name}_PORT to another"
            raise click.ClickException(msg)


def _check_networks(settings: Settings) -> None:
    """Refuse in one line what every worker would refuse again and again."""
    from hipscore import inference

    try:
        bundle = inference.open_bundle(settings.bundle_dir)
        inference.choices(bundle, settings.provider, settings.precision)
    except inference.BundleError as error:
        raise click.ClickException(str(error)) from error


def _reachable(host: str) -> str:
    """Address to connect to what is bound to ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a comparison


def _wait_until_ready(settings: Settings, supervisor: supervise.Supervisor) -> None:
    url = f"{_base(settings, _reachable(settings.http_host))}/readyz"
    until = time.monotonic() + READY_SECONDS
    while not (
        supervise.port_open(_reachable(settings.dicom_host), settings.dicom_port) and _ok(url)
    ):
        if (name := supervisor.failed()) is not None:
            msg = f"{name} ended while starting; its log says why"
            raise click.ClickException(msg)
        if time.monotonic() > until:
            msg = f"not ready after {READY_SECONDS:g} s"
            raise click.ClickException(msg)
        time.sleep(0.05)


def _ok(url: str) -> bool:
    # our own API, whose certificate names another host: only whether it answers counts. No
    # default context: reading the system's authorities anew for each question would take the
    # processor from the processes that are asked whether they are ready.
    unverified = None
    if url.startswith("https:"):
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname = False
        unverified.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=1.0, context=unverified) as response:  # noqa: S310 - see above
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _base(settings: Settings, host: str) -> str:
    scheme = "http" if settings.http_certificate is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.http_port}"


def _summary(settings: Settings) -> str:
    goes = ", ".join(_destinations(settings))
    return "\n".join(
        (
            f"hipscore is up. {RESEARCH_USE}.",
            f"  DICOM   {settings.ae_title}@{settings.dicom_host}:{settings.dicom_port}",
            f"  API     {_base(settings, settings.http_host)}/",
            f"  access  {_access(settings)}",
            f"  data    {settings.data_dir}",
            f"  results {goes or 'go nowhere: set HIPSCORE_DESTINATIONS=AET@HOST:PORT'}",
        )
    )


def _destinations(settings: Settings) -> list[str]:
    if settings.rules is None:
        return list(map(str, settings.destinations))
    from hipscore.keeping.rules import destinations, load_rules

    return list(map(str, destinations(settings, load_rules(settings))))


def _access(settings: Settings) -> str:
    """Say whether the API demands a key, and how to make the first one."""
    if not settings.keys_demanded:
        return "open: no key is demanded, everything done is recorded as local"
    from hipscore.store import access
    from hipscore.store import engine as database

    engine = database.connect(settings.database)
    try:
        with database.transaction(database.readers(engine)) as session:
            any_key = access.anyone(now=datetime.now(UTC), session=session)
    finally:
        engine.dispose()
    if any_key:
        return "a key is demanded"
    return "a key is demanded, and there is none: hipscore keys create NAME --role admin"
