"""The first analysis of a process, of a series nobody sent: the first patient must not wait.

Modules, fonts, code dictionaries and the networks' memory are loaded and made at first use:
together they cost the first series of a process more than the analysis itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from datetime import UTC, datetime

from hipscore import __version__, phantom, pipeline
from hipscore.domain import ArtifactKind, Segmenter
from hipscore.reporting import ReportContext

log = logging.getLogger(__name__)


def rehearse(segmenter: Segmenter, kinds: Collection[ArtifactKind]) -> None:
    """Analyse a small synthetic series and build its artifacts, and forget them.

    What goes wrong here is logged and will go wrong again, with its job, at work.
    """
    begun = time.perf_counter()
    made = phantom.synthesise(seed=1, rows=192, supersampling=1)
    context = ReportContext(
        job_key="rehearsal",
        created_at=datetime.now(UTC).astimezone(),
        software_version=__version__,
    )
    try:
        analysis = pipeline.analyse(phantom.to_datasets(made), segmenter)
        pipeline.report(analysis, segmenter.card, context=context, kinds=frozenset(kinds))
    except Exception as error:  # noqa: BLE001 - nothing depends on it
        log.warning("the rehearsal failed: %s", type(error).__name__)
    else:
        log.info("rehearsed in %.1f s", time.perf_counter() - begun)
