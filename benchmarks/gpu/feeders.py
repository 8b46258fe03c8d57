"""Whole analyses of several processes whose networks are in one shared engine."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from hipscore import __version__, phantom, pipeline
from hipscore.domain import Engine, Segmenter
from hipscore.inference import Bundle
from hipscore.keeping import sharing
from hipscore.reporting import ReportContext
from hipscore.settings import Settings

_PATIENCE_SECONDS = 600.0


def series_per_second(
    settings: Settings, bundle: Bundle, *, feeders: int, series: int
) -> tuple[float, Engine]:
    """Analyse ``series`` synthetic series in each of several processes; what computed them.

    Decoding, scoring and all reports are part of it, database and network are not.
    """
    context = multiprocessing.get_context("spawn")
    with sharing.shared_engine(settings, bundle, concurrency=feeders) as feeder:
        together, answers = context.Barrier(feeders), context.Queue()
        working = [
            context.Process(target=_work, args=(feeder, series, together, answers), daemon=True)
            for _ in range(feeders)
        ]
        for each in working:
            each.start()
        taken = [answers.get(timeout=_PATIENCE_SECONDS) for _ in working]
        for each in working:
            each.join()
    return feeders * series / max(seconds for seconds, _ in taken), taken[0][1]


def _work(make: Callable[[], Segmenter], series: int, together: Any, answers: Any) -> None:
    segmenter = make()
    made = phantom.synthesise(seed=1, burden=phantom.Burden.MODERATE)
    images = phantom.to_datasets(made)
    context = ReportContext(
        job_key="benchmark",
        created_at=datetime.now(UTC).astimezone(),
        software_version=__version__,
    )

    def analyse() -> None:
        analysis = pipeline.analyse(images, segmenter)
        pipeline.report(analysis, segmenter.card, context=context)

    analyse()  # the first loads fonts, modules and memory
    together.wait(_PATIENCE_SECONDS)
    begun = time.perf_counter()
    for _ in range(series):
        analyse()
    answers.put((time.perf_counter() - begun, segmenter.engine))
