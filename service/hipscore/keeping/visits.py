"""The end of a visit: what one association or one request brought is closed, or waits.

A visit is told of as the images it brought: SOP Instance UIDs by the id of their series.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from celery import Celery
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from hipscore import lifecycle, queue
from hipscore.domain import Transient
from hipscore.keeping.closing import Closing
from hipscore.store import engine as database
from hipscore.store import intake, jobs, ledger

log = logging.getLogger(__name__)


def visit_ended(
    images: Mapping[int, Collection[str]],
    *,
    closing: Closing,
    sessions: sessionmaker[Session],
    broker: Celery,
    whole: bool = True,
) -> None:
    """Close what this visit proves complete, now that its sender is done. Never raises.

    ``whole``: senders of this kind send a series in one visit. Where they do not (STOW-RS
    clients cut a series into requests), that images adjoin proves nothing: only the number
    that they announce does. What is not proven complete, or cannot be closed now, the reaper
    closes after the quiet period.
    """
    for series_id, brought in images.items():
        try:
            _close(series_id, brought if whole else (), closing, sessions, broker)
        except (SQLAlchemyError, Transient) as error:
            log.warning("series %d stays open until it is quiet: %s", series_id, where(error))
        except Exception as error:  # noqa: BLE001 - the reaper repeats this; the visit ends here
            log.error("closing series %d failed: %s", series_id, where(error))  # noqa: TRY400


def visit_broken(images: Mapping[int, Collection[str]], *, sessions: sessionmaker[Session]) -> None:
    """Write down that a visit ended in its middle, so that the ledger tells why a series stops.

    Nothing is proven by it; the quiet period decides. Never raises.
    """
    try:
        with database.transaction(sessions) as session:
            for series_id, brought in sorted(images.items()):
                subject = ledger.Subject(series_id=series_id)
                detail = {"images": len(brought)}
                now = datetime.now(UTC)
                ledger.append(subject, "abort", detail=detail, now=now, session=session)
    except (SQLAlchemyError, Transient) as error:
        log.warning("a broken visit is not in the ledger: %s", where(error))


def where(error: BaseException) -> str:
    """Name an error by its class and the line that raised it.

    Its text, and so logging.exception, is left out: it may quote an element of the data set.
    """
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {Path(frame[0].filename).name}:{frame[0].lineno}" if frame else ""
    return f"{type(error).__name__}{place}"


def _close(
    series_id: int,
    brought: Collection[str],
    closing: Closing,
    sessions: sessionmaker[Session],
    broker: Celery,
) -> None:
    """Close the series if what has arrived proves it complete.

    ``brought`` are the images of a visit that is the whole of a series where it has all.
    """
    since = datetime.now(UTC)
    with database.transaction(sessions) as session:
        arrived = intake.evidence(series_id, session=session)
        # An image that came again counts: a sender that was cut off sends all of them.
        once = all(each.sop_instance_uid in brought for each in arrived)
        once = once and bool(brought)
        reason = lifecycle.completeness(arrived, released=True, one_association=once)
    if reason is None:
        return
    # an image since then belongs to no proof
    job = closing.close(series_id, reason, quiet_before=since)
    if job is not None and queue.enqueue_analyse(broker, job.id):
        with database.transaction(sessions) as session:
            jobs.enqueued([job.id], now=datetime.now(UTC), session=session)
