"""One delivery: claim, send the stored bytes, record what the peer answered."""

from __future__ import annotations

import logging
import time
import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from hipscore import lifecycle, pacs
from hipscore.domain import Outcome, Transient
from hipscore.settings import Peer
from hipscore.store import deliveries
from hipscore.store import engine as database
from hipscore.store.moves import LeaseLost, NotFound
from hipscore.store.tables import Delivery
from hipscore.worker.bench import Bench, describe, now_utc, term, trace

log = logging.getLogger(__name__)


def deliver(delivery_id: int, at: Bench) -> None:
    """Send one artifact to one destination, if it is due and nobody else is sending it."""
    lease = uuid.uuid4().hex
    try:
        with database.transaction(at.sessions) as session:
            parcel = deliveries.claim(delivery_id, lease=lease, **term(at), session=session)
    except (Transient, SQLAlchemyError, NotFound) as error:
        log.warning("delivery %d cannot be claimed: %s", delivery_id, describe(error))
        return
    if parcel is None:
        return
    delivery, artifact = parcel.delivery, parcel.artifact
    started = time.perf_counter()
    try:
        outcome = pacs.send(
            Peer.parse(delivery.destination),
            [at.spool.read(artifact.spool_key, artifact.sha256)],
            calling_aet=at.settings.ae_title,
        )
    except Exception as error:  # noqa: BLE001 - the bytes are kept; another attempt costs nothing
        stack = trace(error)  # not logging.exception: that would show the error's text as well
        log.error("delivery %d failed: %s\n%s", delivery_id, describe(error), stack)  # noqa: TRY400
        outcome = Outcome(delivered=False, retry=True, status=None, text=describe(error))
    try:
        with database.transaction(at.sessions) as session:
            verdict = _record(delivery, lease, outcome, at, session)
    except (LeaseLost, Transient, SQLAlchemyError) as error:
        log.warning("delivery %d: outcome not recorded: %s", delivery_id, describe(error))
        return
    log.log(
        logging.INFO if outcome.delivered else logging.WARNING,
        "delivery %d %s to %s %s: send=%.3fs %s",
        delivery_id,
        artifact.kind.value,
        delivery.destination,
        verdict,
        time.perf_counter() - started,
        "" if outcome.status is None else f"status 0x{outcome.status:04X}",
    )


def _record(delivery: Delivery, lease: str, outcome: Outcome, at: Bench, session: Session) -> str:
    now = now_utc()
    if outcome.delivered:
        deliveries.sent(
            delivery.id, lease=lease, status=outcome.status or 0, now=now, session=session
        )
        return "sent"
    answer: dict[str, Any] = {
        "lease": lease,
        "error": outcome.text,
        "status": outcome.status,
        "now": now,
        "session": session,
    }
    if not outcome.retry:
        deliveries.refuse(delivery.id, **answer)
        return "refused"
    if delivery.attempts >= at.settings.max_attempts:
        deliveries.exhaust(delivery.id, **answer)
        return "exhausted"
    later = now + timedelta(seconds=lifecycle.backoff(delivery.attempts))
    deliveries.postpone(delivery.id, next_attempt_at=later, **answer)
    return f"postponed to {later:%Y-%m-%d %H:%M:%S} UTC"
