"""One delivery: claim, send the stored bytes, record what the peer answered."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from hipscore import lifecycle, pacs
from hipscore.addresses import Peer
from hipscore.domain import Outcome, Transient
from hipscore.lease import token
from hipscore.store import deliveries
from hipscore.store import engine as database
from hipscore.store.moves import LeaseLost, NotFound
from hipscore.store.tables import ArtifactRow, Delivery
from hipscore.store.waiting import peer_is_back, wait_for_peer
from hipscore.worker.bench import Bench, announce_commitments, describe, now_utc, term, trace
from hipscore.worker.commitment import wanted

#: longest pause of the others, seconds, when a peer was silent on one object
SILENCE_S = 300.0
#: so much later than the others is that object tried again, seconds
BEHIND_S = 10.0

log = logging.getLogger(__name__)


def deliver(delivery_id: int, at: Bench) -> None:
    """Send one artifact to one destination, if it is due and nobody else is sending it."""
    lease = token()
    try:
        with database.transaction(at.sessions) as session:
            parcel = deliveries.claim(delivery_id, lease=lease, **term(at), session=session)
    except (Transient, SQLAlchemyError, NotFound) as error:
        log.warning("delivery %d cannot be claimed: %s", delivery_id, describe(error))
        return
    if parcel is None:
        return
    delivery, went = parcel.delivery, parcel.artifact
    forms = [parcel.artifact, *([parcel.fallback] if parcel.fallback is not None else [])]
    started = time.perf_counter()
    try:
        outcome, form = pacs.send_one_of(
            Peer.parse(delivery.destination),
            [at.spool.read(each.spool_key, each.sha256) for each in forms],
            calling_aet=at.settings.ae_title,
        )
        went = forms[form]
    except Exception as error:  # noqa: BLE001 - the bytes are kept; another attempt costs nothing
        stack = trace(error)  # not logging.exception: that would show the error's text as well
        log.error("delivery %d failed: %s (%s)", delivery_id, describe(error), stack)  # noqa: TRY400
        outcome = Outcome(delivered=False, retry=True, status=None, text=describe(error))
    try:
        with database.transaction(at.sessions) as session:
            verdict = _record(delivery, lease, outcome, went, at, session)
    except (LeaseLost, Transient, SQLAlchemyError) as error:
        log.warning("delivery %d: outcome not recorded: %s", delivery_id, describe(error))
        return
    log.log(
        logging.INFO if outcome.delivered else logging.WARNING,
        "delivery %d %s to %s %s: send=%.3fs %s",
        delivery_id,
        went.kind.value,
        delivery.destination,
        verdict,
        time.perf_counter() - started,
        f"status 0x{outcome.status:04X}"
        if outcome.status is not None
        else f"(try {delivery.attempts} of {at.settings.max_attempts}: {outcome.text})",
    )
    if outcome.delivered and wanted(delivery.destination, at):
        _ask_for_commitment(delivery, at)


def _record(  # noqa: PLR0917 - one caller, right here
    delivery: Delivery,
    lease: str,
    outcome: Outcome,
    went: ArtifactRow,
    at: Bench,
    session: Session,
) -> str:
    now = now_utc()
    if outcome.delivered:
        deliveries.sent(
            delivery.id,
            lease=lease,
            status=outcome.status or 0,
            form=went,
            commit=wanted(delivery.destination, at),
            now=now,
            session=session,
        )
        freed = peer_is_back(delivery.id, now=now, session=session)
        return f"sent; {freed} others wait no more" if freed else "sent"
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
    later = now + timedelta(seconds=lifecycle.backoff(delivery.attempts))
    others, then = 0, later
    if outcome.silent:
        # It may be this object that it chokes on: the others are tried before it.
        then = min(later, now + timedelta(seconds=SILENCE_S))
        later += timedelta(seconds=BEHIND_S)
    if outcome.unreachable:
        # Each of them would find out the same after the same timeout.
        others = wait_for_peer(
            delivery.id, error=outcome.text, next_attempt_at=then, now=now, session=session
        )
    if delivery.attempts >= at.settings.max_attempts:
        deliveries.exhaust(delivery.id, **answer)
        return "exhausted"
    deliveries.postpone(delivery.id, next_attempt_at=later, also_waiting=others, **answer)
    return f"postponed to {later:%Y-%m-%d %H:%M:%S} UTC with {others} others"


def _ask_for_commitment(delivery: Delivery, at: Bench) -> None:
    """Announce that commitment is wanted, once for what is sent together.

    While anything else is on its way to this destination, the last one does it; what
    nobody announces, the reaper does.
    """
    try:
        with database.transaction(at.sessions) as session:
            if deliveries.underway(delivery.destination, now_utc(), session=session):
                return
    except (Transient, SQLAlchemyError) as error:
        log.warning("commitment is announced by the reaper: %s", describe(error))
        return
    announce_commitments([delivery.id], at)
