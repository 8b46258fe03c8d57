"""How long people wait for the first byte of a page, with 100,000 analyses in PostgreSQL.

``python -m benchmarks.pages`` fills a PostgreSQL of its own, runs ``hipscore serve`` and asks
for each page again and again, one after the other. ``--explain`` shows the plans of the
statements of a page instead.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine, event

from benchmarks import tables
from benchmarks.pages.filling import fill
from hipscore.store import engine as database
from hipscore.store import worklist
from tests import servers

_LIMIT_MS = 100.0


def main() -> None:
    """Fill, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--explain", action="store_true")
    parser.add_argument("--fast", action="store_true", help="2,000 analyses, 5 requests")
    parser.add_argument("--keep", action="store_true", help=f"write the table to {tables.PAGE}")
    arguments = parser.parse_args()
    if arguments.fast:
        arguments.studies, arguments.requests = 2_000, 5
    with servers.postgres() as server, server.database() as url:
        database.upgrade(url)
        engine = database.connect(url)
        begun = time.perf_counter()
        fill(engine, arguments.studies)
        print(f"{arguments.studies} analyses made in {time.perf_counter() - begun:.0f} s")
        if arguments.explain:
            explain(engine)
        else:
            with (
                tempfile.TemporaryDirectory(prefix="pages-") as folder,
                serving(Path(folder), url) as client,
            ):
                text = measure(client, arguments.studies, arguments.requests)
            print(f"\n{text}")
            if arguments.keep:
                tables.keep("pages", text)
        engine.dispose()


@contextlib.contextmanager
def serving(root: Path, url: str) -> Iterator[httpx.Client]:
    """Run ``hipscore serve`` over the database; yields a client of it."""
    port = servers.free_port()
    settings = {
        "HIPSCORE_DATA_DIR": str(root / "data"),
        "HIPSCORE_DATABASE_URL": url,
        "HIPSCORE_BROKER_URL": "redis://127.0.0.1:1",
        "HIPSCORE_HTTP_PORT": str(port),
    }
    process = servers.Process(
        command=[
            "/usr/bin/env",
            *(f"{name}={value}" for name, value in settings.items()),
            *(sys.executable, "-m", "hipscore", "serve"),
        ],
        log=root / "serve.log",
        ready=lambda: servers.listens(port),
    )
    process.start()
    try:
        base = f"http://{servers.LOOPBACK}:{port}"
        with httpx.Client(base_url=base, trust_env=False, timeout=60.0) as client:
            servers.wait_until(lambda: client.get("/healthz").is_success, what="it answers")
            yield client
    finally:
        process.stop()


def measure(client: httpx.Client, studies: int, requests: int) -> str:
    """Ask for every page; how long the first byte took, as Markdown."""
    made = random.Random(1)  # noqa: S311 - which studies are asked for
    rows, slow = [], []
    least = 0.0
    for name, ask in pages(client, studies, made).items():
        for _ in range(3):
            ask()
        spent = [ask() for _ in range(requests)]
        least = least or tables.p50(spent)  # the first one asks nothing of the database
        rows.append(
            [
                name,
                f"{tables.p50(spent):.0f}",
                f"{tables.p95(spent):.0f}",
                f"{tables.p50(spent) / least:.1f}×",
            ]
        )
        print(*rows[-1], file=sys.stderr, flush=True)
        if tables.p95(spent) > _LIMIT_MS:
            slow.append(name)
    return (
        f"{tables.machine()}\n\nFirst byte, ms; {studies:,} analyses, PostgreSQL, {requests} "
        f"requests each:\n\n{tables.table(['page', 'p50', 'p95', '÷ `/healthz`'], rows)}\n\n"
        f"Over {_LIMIT_MS:.0f} ms: {', '.join(slow) or 'none'}."
    )


def pages(
    client: httpx.Client, studies: int, made: random.Random
) -> dict[str, Callable[[], float]]:
    """What is asked for, by name."""

    def uid() -> str:
        return f"2.25.1{made.randint(1, studies):09d}"

    day = (datetime.now(UTC) - timedelta(minutes=20 * studies * 0.7)).strftime("%Y%m%d")
    week = (datetime.now(UTC) - timedelta(days=7)).strftime("%Y-%m-%dT%H:%M:%SZ")
    deep = studies // 3
    paths: dict[str, Callable[[], str]] = {
        "`/healthz`, for comparison": lambda: "/healthz",
        "`/`": lambda: "/",
        "`/?order=highest`": lambda: "/?order=highest",
        "`/worklist` newest": lambda: "/worklist",
        "`/worklist` highest": lambda: "/worklist?order=highest",
        "`/worklist` newest, a deep page": lambda: f"/worklist?after={deep}",
        "`/worklist` highest, a deep page": lambda: (
            f"/worklist?order=highest&below=6.5&after={deep}"
        ),
        "`/worklist` highest, those without score": lambda: f"/worklist?order=highest&after={deep}",
        "status scored": lambda: "/worklist?status=scored",
        "status scored, highest": lambda: "/worklist?status=scored&order=highest",
        "status not scorable": lambda: "/worklist?status=not_scorable",
        "status failed": lambda: "/worklist?status=failed",
        "status queued": lambda: "/worklist?status=queued",
        "flagged": lambda: "/worklist?priority=true",
        "flagged, highest": lambda: "/worklist?priority=true&order=highest",
        "score 20 to 21": lambda: "/worklist?min_score=20&max_score=21",
        "score 5 to 6, highest": lambda: "/worklist?min_score=5&max_score=6&order=highest",
        "study date: an old day": lambda: f"/worklist?study_from={day}&study_to={day}",
        "study date: before an old day": lambda: f"/worklist?study_to={day}",
        "study date: before an old day, highest": (
            lambda: f"/worklist?study_to={day}&order=highest"
        ),
        "received in the last week": lambda: f"/worklist?since={week}",
        "received in the last week, highest": lambda: f"/worklist?since={week}&order=highest",
        "accession number": lambda: f"/worklist?number=A{made.randint(1, studies):09d}",
        "study UID": lambda: f"/worklist?number={uid()}",
        "`/studies`": lambda: "/studies",
        "`/studies/{uid}/view`": lambda: f"/studies/{uid()}/view",
        "`/studies/{uid}/score`": lambda: f"/studies/{uid()}/score",
        "`/studies/{uid}/trend`": lambda: f"/studies/{uid()}/trend",
        "`/studies/{uid}/ledger/view`": lambda: f"/studies/{uid()}/ledger/view",
        "`/queue`": lambda: "/queue",
    }

    def searching(**fields: str) -> Callable[[], float]:
        return lambda: first_byte(client, "POST", "/search", fields)

    asked = {name: _getting(client, path) for name, path in paths.items()}
    asked["patient ID (POST)"] = searching(patient_id="P0001234")
    asked["patient name (POST)"] = searching(patient_name="Smith0")
    return asked


def _getting(client: httpx.Client, path: Callable[[], str]) -> Callable[[], float]:
    return lambda: first_byte(client, "GET", path())


def first_byte(
    client: httpx.Client, method: str, path: str, fields: dict[str, str] | None = None
) -> float:
    """Milliseconds until the first byte of the body is here."""
    begun = time.perf_counter()
    with client.stream(method, path, data=fields) as answer:
        if answer.status_code >= 400:
            raise SystemExit(f"{method} {path} was answered {answer.status_code}")
        body = answer.iter_raw()
        next(body, b"")
        spent = time.perf_counter() - begun
        for _ in body:
            pass  # so that the connection can be used again
    return spent * 1000


def explain(engine: Engine) -> None:
    """Print the plan of what every order and filter of the worklist asks."""
    day = (datetime.now(UTC) - timedelta(days=900)).strftime("%Y%m%d")
    wanted = {
        "newest": (worklist.ALL, False),
        "highest": (worklist.ALL, True),
        "failed": (worklist.Wanted(status="failed"), False),
        "queued": (worklist.Wanted(status="queued"), False),
        "flagged": (worklist.Wanted(priority=True), False),
        "score": (worklist.Wanted(min_score=20.0), False),
        "study date": (worklist.Wanted(study_to=day), False),
        "since": (worklist.Wanted(since=datetime.now(UTC) - timedelta(days=7)), True),
        "number": (worklist.Wanted(number="A000000077"), False),
        "patient": (worklist.Wanted(patient_id="P0000077"), False),
        "name": (worklist.Wanted(patient_name="Smith0"), False),
    }
    for name, (which, highest) in wanted.items():
        print(f"\n=== {name}")
        with engine.connect() as connection, recorded(engine) as statements:
            with database.readers(engine)() as session:
                worklist.page(which, highest=highest, session=session)
            for statement, values in list(statements):
                if "studies" in statement or "first_received_at >=" in statement:
                    rows = connection.exec_driver_sql(f"EXPLAIN (ANALYZE) {statement}", values)
                    print("\n".join(str(row[0])[:160] for row in rows), "\n")


@contextlib.contextmanager
def recorded(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """Yield the list into which every statement goes from now on."""
    statements: list[tuple[str, Any]] = []

    def note(*arguments: Any) -> None:
        if "EXPLAIN" not in str(arguments[2]):
            statements.append((str(arguments[2]), arguments[3]))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


if __name__ == "__main__":
    main()
