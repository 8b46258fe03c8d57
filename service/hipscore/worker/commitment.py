"""Storage commitment: one destination is asked for everything that is due there."""

from __future__ import annotations

import logging
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from hipscore import pacs, routing
from hipscore.addresses import Peer
from hipscore.addresses import destination as parse
from hipscore.domain import Outcome, Transient
from hipscore.store import commitment
from hipscore.store import engine as database
from hipscore.store.commitment import Transaction
from hipscore.store.moves import NotFound, load
from hipscore.store.tables import Delivery
from hipscore.worker.bench import Bench, describe, now_utc, trace

log = logging.getLogger(__name__)


def wanted(destination: str, at: Bench) -> bool:
    """Whether this destination is asked for storage commitment: only DICOM peers can be.

    What the rules file says of it counts before the settings.
    """
    peer, spared = parse(destination), at.settings.no_commitment
    if not isinstance(peer, Peer):
        return False
    said = routing.receiver(at.rules, destination).commitment
    return said if said is not None else "*" not in spared and peer.ae_title not in spared


def commit(delivery_id: int, at: Bench) -> None:
    """Ask the destination of this delivery to commit to it, and to all else that is due there."""
    try:
        transaction = _open(delivery_id, at)
    except (Transient, SQLAlchemyError, NotFound) as error:
        log.warning("commitment of delivery %d not asked for: %s", delivery_id, describe(error))
        return
    if transaction is None:
        return
    try:
        outcome = _ask(transaction, at)
    except Exception as error:  # noqa: BLE001 - whatever went wrong, it is asked again
        stack = trace(error)  # not logging.exception: that would show the error's text as well
        log.error("asking for commitment failed: %s (%s)", describe(error), stack)  # noqa: TRY400
        outcome = Outcome(delivered=False, retry=True, status=None, text=describe(error))
    try:
        _record(transaction, outcome, at)
    except (Transient, SQLAlchemyError) as error:
        # Nothing is lost: it is asked again when the hold ends.
        log.warning("transaction %s: outcome not recorded: %s", transaction.uid, describe(error))


def _open(delivery_id: int, at: Bench) -> Transaction | None:
    with database.transaction(at.sessions) as session:
        destination = load(Delivery, delivery_id, session=session).destination
        if not wanted(destination, at):
            left = commitment.waive(destination, session=session)
            if left:
                log.info("%s is not asked for commitment any more: %d sent", destination, left)
            return None
        now = now_utc()
        return commitment.open_transaction(
            destination,
            held_until=now + timedelta(seconds=at.settings.lease_seconds),
            now=now,
            session=session,
        )


def _ask(transaction: Transaction, at: Bench) -> Outcome:
    look = database.readers(at.sessions.kw["bind"])

    def on_report(report: pacs.Report) -> bool:
        with database.transaction(at.sessions) as session:
            return commitment.report(
                report.transaction_uid,
                succeeded=report.succeeded,
                failed=report.failed,
                by=lambda destination: destination == transaction.destination,
                max_attempts=at.settings.max_attempts,
                now=now_utc(),
                session=session,
            )

    def still_wanted() -> bool:
        try:
            with database.transaction(look) as session:
                return commitment.unanswered(transaction.uid, session=session)
        except (Transient, SQLAlchemyError):
            return True

    return pacs.request_commitment(
        Peer.parse(transaction.destination),
        [pacs.Reference(*each) for each in transaction.objects],
        transaction_uid=transaction.uid,
        calling_aet=at.settings.ae_title,
        on_report=on_report,
        still_wanted=still_wanted,
    )


def _record(transaction: Transaction, outcome: Outcome, at: Bench) -> None:
    uid, count, peer = transaction.uid, len(transaction.objects), transaction.destination
    with database.transaction(at.sessions) as session:
        if outcome.delivered:
            wait_s = at.settings.commitment_seconds
            commitment.accepted(uid, wait_s=wait_s, now=now_utc(), session=session)
            log.info("%s asked for commitment to %d objects, transaction %s", peer, count, uid)
            return
        offered, text = outcome.retry, outcome.text
        if offered and not outcome.unreachable:
            us = at.settings.ae_title
            text += f" when asked for storage commitment; it has to know {us} and its address"
        if not offered:
            title = Peer.parse(peer).ae_title
            text = (
                f"{peer} does not offer storage commitment; "
                f"name it in HIPSCORE_NO_COMMITMENT ({title}) if it never will"
            )
        later = commitment.failed(
            uid,
            error=text,
            offered=offered,
            max_attempts=at.settings.max_attempts,
            now=now_utc(),
            session=session,
        )
    when = "not again" if later is None else f"again at {later:%Y-%m-%d %H:%M:%S} UTC"
    log.warning("%d objects not committed: %s; asked %s", count, text, when)
