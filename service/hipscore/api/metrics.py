"""Metrics for Prometheus, computed from the database when they are asked for.

The database is the truth of all processes, so no process counts for itself and a restart
loses nothing. No label names a patient, a study or a peer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from statistics import quantiles
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from hipscore.api.shared import Desk
from hipscore.domain import Transient
from hipscore.store import engine as database
from hipscore.store import queries
from hipscore.store.tables import Job

#: stage times are taken over this many of the newest finished jobs
WINDOW = 100


def render(desk: Desk) -> bytes:
    """Return the metrics in the text exposition format."""
    registry = CollectorRegistry()
    registry.register(_Database(desk))
    return generate_latest(registry)


class _Database(Collector):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def describe(self) -> Iterable[Metric]:
        return ()  # keeps register() from collecting

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("hipscore_database_up", "1 if the database answers")
        try:
            with database.transaction(self._desk.readers) as session:
                counts = queries.counts(session=session)
                finished = select(Job.timings, Job.engine).where(Job.timings.is_not(None))
                newest = session.execute(finished.order_by(Job.id.desc()).limit(WINDOW)).all()
        except (Transient, SQLAlchemyError):
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield _by_state("series", counts.series)
        yield _by_state("jobs", counts.jobs)
        yield _by_state("deliveries", counts.deliveries)
        yield _age("queued", "job that waits", counts.oldest_queued_at)
        yield _age(
            "undelivered",
            "result that a destination does not have, whatever the reason",
            counts.oldest_undelivered_at,
        )
        yield GaugeMetricFamily(
            "hipscore_uncommitted",
            "results that were sent and wait for the storage commitment",
            value=counts.uncommitted,
        )
        yield _age("uncommitted", "result that waits for it", counts.oldest_uncommitted_at)
        yield _stages([each.timings for each in newest if each.timings])
        yield _engines([each.engine for each in newest if each.engine])
        yield _free(self._desk)


def _by_state(what: str, counts: object) -> Metric:
    assert isinstance(counts, dict)  # noqa: S101 - queries.Counts holds dicts
    family = GaugeMetricFamily(f"hipscore_{what}", f"{what} in each state", labels=["state"])
    for state, number in counts.items():
        family.add_metric([state.value], number)
    return family


def _age(which: str, words: str, since: datetime | None) -> Metric:
    age = 0.0 if since is None else (datetime.now(UTC) - since).total_seconds()
    name, text = f"hipscore_oldest_{which}_seconds", f"age of the oldest {words}"
    return GaugeMetricFamily(name, text, value=max(age, 0.0))


def _stages(timings: list[dict[str, float]]) -> Metric:
    family = GaugeMetricFamily(
        "hipscore_job_stage_seconds",
        f"seconds per stage over the newest {WINDOW} finished jobs",
        labels=["stage", "quantile"],
    )
    for stage in dict.fromkeys(name for each in timings for name in each):
        spent = [each[stage] for each in timings if stage in each]
        cuts = quantiles(spent, n=20, method="inclusive") if len(spent) > 1 else spent * 19
        family.add_metric([stage, "0.5"], cuts[9])
        family.add_metric([stage, "0.95"], cuts[18])
    return family


def _engines(engines: list[dict[str, Any]]) -> Metric:
    """An alert belongs on ``fallback="1"``: something faster was tried and did not work."""
    family = GaugeMetricFamily(
        "hipscore_job_engines",
        f"what computed the networks of the newest {WINDOW} finished jobs; fallback is 1 where "
        "a faster engine was tried and not used",
        labels=["provider", "precision", "fallback"],
    )
    used = Counter(
        (each["provider"], each["precision"], str(int(bool(each["declined"])))) for each in engines
    )
    for labels, number in sorted(used.items()):
        family.add_metric(list(labels), number)
    return family


def _free(desk: Desk) -> Metric:
    try:
        free = float(desk.spool.free_bytes())
    except (OSError, Transient):
        free = 0.0
    return GaugeMetricFamily("hipscore_spool_free_bytes", "disk left for the spool", value=free)
