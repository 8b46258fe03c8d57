"""Deliveries: claim, send the stored bytes, record what the peer answered, claim the next.

How they travel is the destination's business: C-STORE, STOW-RS, or HL7 over MLLP. What follows
from the answer (:class:`hipscore.domain.Outcome`) is the same for all of them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from hipscore import lifecycle, mllp, pacs, routing, stow
from hipscore.addresses import DicomWeb, Mllp, Peer
from hipscore.addresses import destination as parse
from hipscore.domain import ArtifactKind, Outcome, Transient
from hipscore.lease import token
from hipscore.lifecycle import IllegalMove
from hipscore.store import deliveries, replacing, together
from hipscore.store import engine as database
from hipscore.store.deliveries import Parcel
from hipscore.store.moves import LeaseLost, NotFound
from hipscore.store.tables import ArtifactRow, Delivery
from hipscore.store.together import Sibling
from hipscore.store.waiting import peer_is_back, wait_for_peer
from hipscore.worker.bench import (
    Bench,
    announce_commitments,
    announce_deliveries,
    describe,
    now_utc,
    term,
    trace,
)
from hipscore.worker.commitment import wanted

#: longest pause of the others, seconds, when a peer was silent on one object
SILENCE_S = 300.0
#: so much later than the others is that object tried again, seconds
BEHIND_S = 10.0
#: what goes to a destination that is ``auto`` and does not take the class of the first
INSTEAD = (ArtifactKind.SC, ArtifactKind.PDF)
#: why a message is not sent
LATER = "a later result of the series goes there instead"
_REPLACEABLE = frozenset({ArtifactKind.SEG, ArtifactKind.SR})
#: why a row may not be claimed, or its outcome not be recorded, at this moment
_NOT_NOW = (Transient, SQLAlchemyError, NotFound, IllegalMove)

log = logging.getLogger(__name__)


def deliver(delivery_id: int, at: Bench) -> None:
    """Send one artifact to one destination, if it is due and nobody else is sending it.

    What else of its job is due there follows, one by one over the same association. Each has
    its own claim and its own outcome: whatever becomes of one, the others stay PENDING until
    it is their turn.
    """
    lease = token()
    try:
        with database.transaction(at.sessions) as session:
            parcel = deliveries.claim(delivery_id, lease=lease, **term(at), session=session)
            rest = _follows(parcel, session=session)
    except _NOT_NOW as error:
        log.warning("delivery %d cannot be claimed: %s", delivery_id, describe(error))
        return
    if parcel is None:
        return
    carrier = _carrier(parcel, rest, at)
    tour = _Tour(lease=lease, rest=deque(each.id for each in rest))
    try:
        while parcel is not None:
            parcel = _deliver_next(parcel, tour, carrier, at)
    finally:
        if carrier is not None:
            carrier.close()
    if tour.commits:
        announce_commitments([tour.commits], at, remember=False)


@dataclass(slots=True, kw_only=True)
class _Tour:
    """What one worker sends to one destination, one after the other.

    ``rest``: what may follow. ``delivered``: the last that arrived. ``commits``: one whose
    commitment is to be announced.
    """

    lease: str
    rest: deque[int]
    delivered: int | None = None
    commits: int | None = None


def _follows(parcel: Parcel | None, *, session: Session) -> list[Sibling]:
    """What could be sent with it; messages have an order of their own and go alone."""
    if parcel is None or isinstance(parse(parcel.delivery.destination), Mllp):
        return []
    now = now_utc()
    rest = together.beside(parcel, now=now, session=session)
    if rest:
        # the reaper announces none of them to another worker while this one is on its way
        deliveries.enqueued([each.id for each in rest], now=now, session=session)
    return rest


def _carrier(parcel: Parcel, rest: Sequence[Sibling], at: Bench) -> pacs.Carrier | None:
    """What brings objects to a DICOM peer; None for other destinations."""
    peer = parse(parcel.delivery.destination)
    if not isinstance(peer, Peer):
        return None
    classes = [sop_class for each in rest for sop_class in each.sop_classes]
    return pacs.Carrier(peer, classes, calling_aet=at.settings.ae_title)


def _deliver_next(
    parcel: Parcel, tour: _Tour, carrier: pacs.Carrier | None, at: Bench
) -> Parcel | None:
    """Send a claimed delivery and record what came of it; the next one, claimed, if any."""
    delivery, went = parcel.delivery, parcel.artifact
    started = time.perf_counter()
    try:
        outcome, went = _send(parcel, carrier, at)
    except Exception as error:  # noqa: BLE001 - the bytes are kept; another attempt costs nothing
        stack = trace(error)  # not logging.exception: that would show the error's text as well
        log.error("delivery %d failed: %s (%s)", delivery.id, describe(error), stack)  # noqa: TRY400
        outcome = Outcome(delivered=False, retry=True, status=None, text=describe(error))
    spent = time.perf_counter() - started
    try:
        settled = _settle(delivery, tour, outcome, went, at)
    except LeaseLost as error:
        log.warning("delivery %d: outcome not recorded: %s", delivery.id, describe(error))
        return _claim_alone(tour, at)
    except _NOT_NOW as error:
        log.warning("delivery %d: outcome not recorded: %s", delivery.id, describe(error))
        return None
    log.log(
        logging.INFO if outcome.delivered else logging.WARNING,
        "delivery %d %s to %s %s: send=%.3fs %s",
        delivery.id,
        went.kind.value,
        delivery.destination,
        settled.verdict,
        spent,
        deliveries.shown(delivery.destination, outcome.status)
        or f"(try {delivery.attempts} of {at.settings.max_attempts}: {outcome.text})",
    )
    tour.delivered = settled.delivered
    tour.commits = settled.delivered if settled.asks else None
    if settled.opened:
        announce_deliveries(settled.opened[:1], at, remember=False)
    return settled.following


class _Settled(NamedTuple):
    """What came of a delivery, and what follows it.

    ``delivered``: the last of the tour that arrived. ``asks``: whether its commitment is to
    be announced.
    """

    verdict: str
    opened: list[int]
    following: Parcel | None
    delivered: int | None
    asks: bool


def _settle(
    delivery: Delivery, tour: _Tour, outcome: Outcome, went: ArtifactRow, at: Bench
) -> _Settled:
    """Record what came of it and claim the next, in one transaction.

    If that does not go, it is recorded once more without a claim: what keeps the next from
    being claimed must not undo the record of what has gone out.
    """
    try:
        return _settle_once(delivery, tour, outcome, went, at, goes_on=True)
    except _NOT_NOW as error:
        log.warning("delivery %d is recorded alone: %s", delivery.id, describe(error))
        return _settle_once(delivery, tour, outcome, went, at, goes_on=False)


def _settle_once(
    delivery: Delivery,
    tour: _Tour,
    outcome: Outcome,
    went: ArtifactRow,
    at: Bench,
    *,
    goes_on: bool,
) -> _Settled:
    with database.transaction(at.sessions) as session:
        verdict, opened = _record(delivery, tour, outcome, went, at, session)
        following = _claim_next(tour, at, session) if goes_on else None
        delivered = delivery.id if outcome.delivered else tour.delivered
        last = following is None and delivered is not None
        asks = last and _asks(delivery.destination, at, session)
    return _Settled(verdict, opened, following, delivered, asks)


def _claim_next(tour: _Tour, at: Bench, session: Session) -> Parcel | None:
    """Claim the next of the tour that is still due and that nobody else has taken."""
    while tour.rest:
        following = deliveries.claim(
            tour.rest.popleft(), lease=tour.lease, **term(at), session=session
        )
        if following is not None:
            return following
    return None


def _claim_alone(tour: _Tour, at: Bench) -> Parcel | None:
    """Go on behind a delivery that somebody else has taken over meanwhile."""
    try:
        with database.transaction(at.sessions) as session:
            return _claim_next(tour, at, session)
    except _NOT_NOW as error:
        log.warning("what is left waits for the reaper: %s", describe(error))
        return None


def _send(parcel: Parcel, carrier: pacs.Carrier | None, at: Bench) -> tuple[Outcome, ArtifactRow]:
    """Send it the way its destination wants it; the answer, and which form went."""
    forms = [parcel.artifact, *([parcel.fallback] if parcel.fallback is not None else [])]
    if carrier is not None:
        outcome, form = carrier.send_one_of(
            [at.spool.read(each.spool_key, each.sha256) for each in forms]
        )
        return outcome, forms[form]
    peer = parse(parcel.delivery.destination)
    if isinstance(peer, Mllp):
        return _send_message(peer, parcel, at), parcel.artifact
    if isinstance(peer, DicomWeb):
        return _store_on_the_web(peer, forms, at)
    msg = f"nothing is known of how {peer} takes what is sent"
    raise TypeError(msg)


def _send_message(receiver: Mllp, parcel: Parcel, at: Bench) -> Outcome:
    """Send it unless it would be the last word on a series about which there is a later one."""
    message = parcel.artifact
    with database.transaction(at.sessions) as session:
        others = replacing.overtaken(parcel.delivery.id, session=session)
    if others.by is not None:
        return Outcome(delivered=False, retry=False, status=None, text=LATER)
    if others.waits:
        text = "the earlier result of the series is being sent at this moment"
        return Outcome(delivered=False, retry=True, status=None, text=text)
    described = routing.receiver(at.rules, str(receiver))
    return mllp.send(
        receiver,
        at.spool.read(message.spool_key, message.sha256),
        application=described.receiving_application,
        facility=described.receiving_facility,
        attempt=parcel.delivery.attempts,
    )


def _store_on_the_web(
    service: DicomWeb, forms: Sequence[ArtifactRow], at: Bench
) -> tuple[Outcome, ArtifactRow]:
    """Nothing is negotiated there: the fallback goes when the class of the first is refused."""
    try:
        authorization = _authorization(service, at)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        # The file's name is the operator's own; its content is not repeated.
        reason = getattr(error, "strerror", None) or "it is not one line of text"
        text = f"the authorization_file of {service} cannot be used: {reason}"
        return Outcome(delivered=False, retry=True, status=None, text=text), forms[0]
    for form in forms:
        data = at.spool.read(form.spool_key, form.sha256)
        outcome = stow.send(service, data, authorization=authorization)
        if not outcome.unsupported:
            return outcome, form
    return outcome, forms[0]


def _authorization(service: DicomWeb, at: Bench) -> str | None:
    """Value of the header Authorization; read each time, so that it can be changed."""
    name = routing.receiver(at.rules, str(service)).authorization_file
    if name is None:
        return None
    value = Path(name).read_text("ascii").strip()
    if not value.isprintable() or not value:
        msg = "not one line of text"
        raise ValueError(msg)
    return value


def _record(  # noqa: PLR0917 - one caller, right here
    delivery: Delivery,
    tour: _Tour,
    outcome: Outcome,
    went: ArtifactRow,
    at: Bench,
    session: Session,
) -> tuple[str, list[int]]:
    """Write down what came of it: in words, and with which deliveries were opened instead."""
    now = now_utc()
    if outcome.delivered:
        deliveries.sent(
            delivery.id,
            lease=tour.lease,
            status=outcome.status,
            form=went,
            commit=wanted(delivery.destination, at),
            now=now,
            session=session,
        )
        first = tour.delivered is None
        freed = peer_is_back(delivery.id, now=now, session=session) if first else 0
        return f"sent; {freed} others wait no more" if freed else "sent", []
    answer: dict[str, Any] = {
        "lease": tour.lease,
        "error": outcome.text,
        "status": outcome.status,
        "now": now,
        "session": session,
    }
    if not outcome.retry:
        if outcome.text == LATER:
            instead = replacing.overtaken(delivery.id, session=session).by
            deliveries.refuse(delivery.id, form_id=instead, **answer)
            return "not sent, a later result goes", []
        deliveries.refuse(delivery.id, **answer)
        if not _replaceable(delivery, outcome, went, at):
            return "refused", []
        opened = replacing.replace(delivery.id, INSTEAD, now=now, session=session)
        return f"refused; {len(opened)} others go instead", opened
    later = now + timedelta(seconds=lifecycle.backoff(delivery.attempts))
    others, then = 0, later
    if outcome.silent:
        # It may be this object that it chokes on: the others are tried before it.
        then = min(later, now + timedelta(seconds=SILENCE_S))
        later += timedelta(seconds=BEHIND_S)
    if outcome.unreachable:
        # Each of them would find out the same after the same timeout.
        tour.rest.clear()
        others = wait_for_peer(
            delivery.id, error=outcome.text, next_attempt_at=then, now=now, session=session
        )
    if delivery.attempts >= at.settings.max_attempts:
        deliveries.exhaust(delivery.id, **answer)
        return "exhausted", []
    deliveries.postpone(delivery.id, next_attempt_at=later, also_waiting=others, **answer)
    return f"postponed to {later:%Y-%m-%d %H:%M:%S} UTC with {others} others", []


def _replaceable(delivery: Delivery, outcome: Outcome, went: ArtifactRow, at: Bench) -> bool:
    """Whether the destination takes something else in the place of what it has refused."""
    auto = routing.receiver(at.rules, delivery.destination).auto
    return auto and outcome.unsupported and went.kind in _REPLACEABLE


def _asks(destination: str, at: Bench, session: Session) -> bool:
    """Whether to announce that commitment is wanted, once for what is sent together.

    While anything else is on its way to this destination, the last one does it; what
    nobody announces, the reaper does.
    """
    if not wanted(destination, at):
        return False
    return not deliveries.underway(destination, now_utc(), session=session)
