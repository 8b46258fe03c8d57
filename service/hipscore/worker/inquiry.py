"""The PACS as evidence: a series of which it has no more images than we is complete."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from hipscore import pacs
from hipscore.addresses import Peer
from hipscore.domain import Transient
from hipscore.lifecycle import CloseReason
from hipscore.store import engine as database
from hipscore.store import intake
from hipscore.worker.bench import Bench, announce_jobs, describe, now_utc, trace

#: a series is asked about when it got no image for so long
SILENT = timedelta(seconds=1)
#: how often it is looked for such series, seconds
LOOK_SECONDS = 1.0
#: series looked at each time
BATCH = 100
TIMEOUTS = pacs.Timeouts(connection=5.0, acse=5.0, dimse=5.0)

log = logging.getLogger(__name__)


def watch(at: Bench, stop: threading.Event) -> None:
    """Inquire every second until ``stop`` is set."""
    while not stop.is_set():
        try:
            inquire(at)
        except (Transient, SQLAlchemyError) as error:
            log.warning("the PACS is asked later: %s", describe(error))
        except Exception as error:  # noqa: BLE001 - the quiet period closes what this does not
            log.error("asking the PACS failed: %s (%s)", describe(error), trace(error))  # noqa: TRY400
        stop.wait(LOOK_SECONDS)


def inquire(at: Bench) -> None:
    """Close every open series of which ``query_peer`` has exactly the images that we have.

    Each is asked about when it is silent for a second, then after 2, 4, 8 … 60 s.
    """
    peer = at.settings.query_peer
    if peer is None or at.card is None:
        return
    with database.transaction(at.sessions) as session:
        silent = intake.quiet(before=now_utc() - SILENT, limit=BATCH, session=session)
    asked = at.memory.asked
    asked.keep(silent)
    for series_id in silent:
        if not asked.over(series_id):
            continue
        asked.grow(series_id)
        if not _inquire(series_id, peer, at):
            return  # the others would wait for the same timeout


def _inquire(series_id: int, peer: Peer, at: Bench) -> bool:
    """Ask about one series, and close it if the numbers agree. Whether the peer answered."""
    since = now_utc()
    with database.transaction(at.sessions) as session:
        arrived = intake.evidence(series_id, session=session)
    if not arrived:
        return True
    theirs = pacs.count_images(
        peer,
        arrived[0].study_instance_uid,
        arrived[0].series_instance_uid,
        calling_aet=at.settings.ae_title,
        timeouts=TIMEOUTS,
    )
    if theirs is None:
        log.warning("%s does not say how many images a series has", peer)
        return False
    if theirs != len(arrived):
        return True
    # an image since then belongs to no count
    job = at.closing().close(series_id, CloseReason.PEER_COUNT, quiet_before=since)
    if job is not None:
        announce_jobs([job.id], at)
    return True
