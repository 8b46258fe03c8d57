"""What the statements cost with a million analyses in PostgreSQL, inside the session.

``python -m benchmarks.database`` fills a PostgreSQL of its own and measures the functions of
the store, warm, with random keys: no HTTP, no commit. ``--fast`` takes 50,000 analyses,
``--explain FILE`` writes the plans of every statement, ``--keep`` the tables into
``docs/performance.md``, ``--url`` measures a database that is filled already.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy import Engine, text

from benchmarks import tables
from benchmarks.database import growth
from benchmarks.database.filling import WHOLE, fill
from benchmarks.database.plans import explain
from benchmarks.database.questions import Question, questions
from hipscore.store import engine as database
from tests import servers

_FAST = 50_000
_WARM = 5


def main() -> None:
    """Fill, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--fast", action="store_true", help=f"{_FAST} analyses")
    parser.add_argument("--explain", type=Path, metavar="FILE", help="write all plans there")
    parser.add_argument("--keep", action="store_true", help="into docs/performance.md")
    parser.add_argument("--url", help="of a database filled by this benchmark before")
    arguments = parser.parse_args()
    studies = _FAST if arguments.fast else arguments.studies
    with contextlib.ExitStack() as stack:
        url = arguments.url or stack.enter_context(filled(studies))
        engine = database.connect(url)
        stack.callback(engine.dispose)
        if arguments.explain:
            arguments.explain.write_text(explain(engine, studies), encoding="utf-8")
        heading = (
            f"{studies:,} analyses, PostgreSQL {version(engine)}, {arguments.runs} runs each, "
            f"ms inside the session, by the clock and on the processors (client "
            f"and server). {tables.machine('sqlalchemy', 'psycopg')}."
        )
        shown = "\n\n".join(
            (
                heading,
                measure(engine, studies, arguments.runs),
                growth.sizes(engine),
                growth.table(),
            )
        )
        print(shown)
        if arguments.keep:
            tables.keep("database", shown)


@contextlib.contextmanager
def filled(studies: int) -> Iterator[str]:
    """Yield the URL of a PostgreSQL with so many analyses."""
    with servers.postgres() as server, server.database() as url:
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            # fewer checkpoints while it is filled
            connection.execute("ALTER SYSTEM SET max_wal_size = '2GB'")
            connection.execute("SELECT pg_reload_conf()")
        database.upgrade(url)
        engine = database.connect(url)
        begun = time.perf_counter()
        fill(engine, studies, whole=WHOLE)
        print(f"{studies} analyses made in {time.perf_counter() - begun:.0f} s", flush=True)
        engine.dispose()
        yield url


def version(engine: Engine) -> str:
    """Version of the server."""
    with engine.connect() as connection:
        return str(connection.exec_driver_sql("SHOW server_version").scalar_one()).split()[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Milliseconds of one run: by the clock, and on the processors.

    ``server`` is what the process of PostgreSQL was given of a core, ``client`` what this one
    was: on a machine that others use as well, the clock says more about them.
    """

    clock: float
    client: float
    server: float

    @property
    def busy(self) -> float:
        """On both processors."""
        return self.client + self.server


def measure(engine: Engine, studies: int, runs: int) -> str:
    """Ask every question, and how long it took."""
    rows = []
    for question in questions(engine, studies, random.Random(1)):  # noqa: S311 - which keys
        spent = timed(question, runs)
        busy = tables.p95([each.busy for each in spent])
        limit = "" if question.limit_ms is None else f"{question.limit_ms:.0f}"
        missed = question.limit_ms is not None and busy > question.limit_ms
        shown = (
            tables.p50([each.clock for each in spent]),
            tables.p95([each.clock for each in spent]),
            tables.p50([each.busy for each in spent]),
            busy,
            tables.p95([each.server for each in spent]),
        )
        figures = [f"{each:.1f}" for each in shown]
        rows.append((question.name, *figures, f"{limit}{' !' if missed else ''}"))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    header = ("what", "p50", "p95", "CPU p50", "CPU p95", "of it server", "at most")
    return tables.table(header, rows)


def timed(question: Question, runs: int) -> list[Spent]:
    """What each run took; what a run changes is rolled back."""
    spent = []
    for number in range(_WARM + runs):
        with question.maker() as session:
            begin = question.prepare(session)
            server = int(session.scalar(text("SELECT pg_backend_pid()")) or 0)
            before = (time.perf_counter(), time.process_time(), _ran(server))
            begin()
            after = (time.perf_counter(), time.process_time(), _ran(server))
            clock, client, of_server = ((b - a) * 1000 for a, b in zip(before, after, strict=True))
            if number >= _WARM:
                spent.append(Spent(clock=clock, client=client, server=of_server))
            session.rollback()
    return spent


def _ran(process: int) -> float:
    """Seconds that a process has run."""
    ran = Path(f"/proc/{process}/schedstat").read_text("ascii").split()[0]
    return int(ran) / 1e9


if __name__ == "__main__":
    main()
