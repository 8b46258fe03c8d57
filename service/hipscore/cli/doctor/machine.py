"""What is on this machine or beside it: settings, database, broker, model, disk, clock."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from hipscore import heartbeat, inference, queue
from hipscore.cli.common import missing_database
from hipscore.cli.doctor.finding import Finding, fault, good, note, warning
from hipscore.cli.maintain import masked
from hipscore.keeping.networks import configured
from hipscore.keeping.rules import load_rules
from hipscore.settings import Settings
from hipscore.store import engine as database

_MB = 1024 * 1024
#: clocks that differ by more confuse leases and the order of the ledger, seconds
LARGEST_SKEW_S = 2.0
#: a year before which no clock of a running service can be
EARLIEST = 2025


def findings(settings: Settings) -> Iterator[Finding]:
    """Look at each in turn; one that is broken keeps none of the others from being looked at."""
    yield from _settings(settings)
    yield from _disk(settings)
    yield from _database(settings)
    yield from _broker(settings)
    yield from _workers(settings)
    yield from _model(settings)


def _settings(settings: Settings) -> Iterator[Finding]:
    try:
        load_rules(settings)
    except (OSError, ValueError) as error:
        yield fault("rules", str(error), "mend the file; hipscore rules show")
    else:
        given = "the built-in rule" if settings.rules is None else str(settings.rules)
        yield good("rules", f"{given}; see hipscore rules show")
    if not settings.destinations and settings.rules is None:
        yield warning(
            "destinations", "results go nowhere", "set HIPSCORE_DESTINATIONS=AET@HOST:PORT"
        )


def _disk(settings: Settings) -> Iterator[Finding]:
    where = settings.data_dir
    try:
        where.mkdir(parents=True, exist_ok=True)
        probe = where / f".doctor-{os.getpid()}"
        began = time.perf_counter()
        with probe.open("wb") as file:
            file.write(b"\0" * _MB)
            file.flush()
            os.fsync(file.fileno())
        spent = time.perf_counter() - began
        probe.unlink()
        free = shutil.disk_usage(where).free // _MB
    except OSError as error:
        yield fault(
            "disk",
            f"{where} cannot be written: {error.strerror or error}",
            "check HIPSCORE_DATA_DIR and who owns it",
        )
        return
    shown = f"{free:,} MB free in {where}; a megabyte is on the disk in {spent * 1000:.0f} ms"
    if free < settings.reserve_mb:
        yield fault("disk", f"{shown}; images are refused", "make room: hipscore purge --dry-run")
    elif free < settings.watermark_mb:
        yield warning("disk", f"{shown}; finished images go early", "make room, or a larger disk")
    else:
        yield good("disk", shown)


def _database(settings: Settings) -> Iterator[Finding]:
    shown = masked(settings.database)
    if missing_database(settings):
        yield fault("database", f"{shown} does not exist", "hipscore db upgrade, or hipscore up")
        return
    try:
        engine = database.connect(settings.database)
    except ValueError as error:
        yield fault("database", str(error), "check HIPSCORE_DATABASE_URL")
        return
    try:
        began = time.perf_counter()
        with engine.connect() as connection:
            theirs = connection.scalar(text("SELECT CURRENT_TIMESTAMP"))
        spent = time.perf_counter() - began
        ours = datetime.now(UTC)
        if not (schema := database.schema(engine)).current:
            what, _, remedy = schema.text.partition("; ")
            yield fault("database", f"{shown}: {what}", remedy)
        else:
            yield good("database", f"{shown} answers in {spent * 1000:.0f} ms")
        yield _clock(theirs, ours)
    except SQLAlchemyError as error:
        # without the driver's words: they may repeat the password
        yield fault(
            "database",
            f"{shown} cannot be used ({type(error).__name__})",
            "check HIPSCORE_DATABASE_URL and that the server runs",
        )
    finally:
        engine.dispose()


def _clock(theirs: object, ours: datetime) -> Finding:
    if ours.year < EARLIEST:
        return fault("clock", f"it says {ours:%Y-%m-%d %H:%M} UTC", "set the clock (NTP)")
    if not isinstance(theirs, datetime):  # SQLite's clock is this machine's
        return good("clock", f"{ours:%Y-%m-%d %H:%M:%S} UTC")
    skew = abs((theirs.astimezone(UTC) - ours).total_seconds())
    shown = f"{ours:%Y-%m-%d %H:%M:%S} UTC, {skew:.1f} s from the database's"
    if skew > LARGEST_SKEW_S:
        return warning("clock", shown, "let NTP set both clocks: leases depend on them")
    return good("clock", shown)


def _broker(settings: Settings) -> Iterator[Finding]:
    shown = "embedded Valkey" if settings.broker_embedded else masked(settings.broker)
    app = queue.publisher(settings.broker)
    if not queue.reachable(app):
        yield fault(
            "broker",
            f"{shown} does not answer",
            "start hipscore up" if settings.broker_embedded else "check HIPSCORE_BROKER_URL",
        )
        return
    waiting = [
        f"{queue.waiting(app, name)} in {name}"
        for name in (queue.ANALYSIS_QUEUE, queue.DELIVERY_QUEUE)
    ]
    yield good("broker", f"{shown} answers; messages: {', '.join(waiting)}")


def _workers(settings: Settings) -> Iterator[Finding]:
    found = [each for each in heartbeat.read(heartbeat.folder(settings.data_dir)) if each.alive]
    for each in found:
        served = " and ".join(each.queues)
        shown = f"{served} on {each.host}: {each.warm} of {each.processes} processes warm"
        if each.warm:
            yield good("workers", shown)
        else:
            yield warning("workers", shown, "wait until it has loaded; else see its log")
    for name in (queue.ANALYSIS_QUEUE, queue.DELIVERY_QUEUE):
        if not any(name in each.queues for each in found):
            yield fault(
                "workers",
                f"none serves {name} in {settings.data_dir}",
                f"hipscore up, or hipscore work --queue {name}",
            )


def _model(settings: Settings) -> Iterator[Finding]:
    try:
        segmenter = configured(settings)
    except inference.BundleError as error:
        yield fault(
            "model",
            str(error),
            "reinstall, or check HIPSCORE_BUNDLE_DIR, HIPSCORE_PROVIDER and HIPSCORE_PRECISION",
        )
        return
    card = segmenter.card
    yield good(
        "model",
        f"{card.id} {card.version} on {segmenter.engine} reproduces its reference output "
        f"(deviation {segmenter.deviation:.1g})",
    )
    for complaint in segmenter.engine.declined:
        yield warning(
            "model",
            f"{complaint}; a slower engine computes instead",
            "mend it, or name the engine to use in HIPSCORE_PROVIDER",
        )
    if card.trained_on:
        yield note("model", f"trained on {card.trained_on}")


def listens(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=3.0):
            return True
    except OSError:
        return False
