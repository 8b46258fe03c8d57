"""Where the results of a job are on their way: from deliveries to sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby

from hipscore.addresses import DicomWeb, Mllp, Peer
from hipscore.addresses import destination as parse
from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState
from hipscore.store.account import Account
from hipscore.store.deliveries import WITHDRAWN
from hipscore.store.queries import JobDetail
from hipscore.store.retracting import takes_back
from hipscore.store.tables import ArtifactRow, Delivery, Event
from hipscore.store.telling import OVERDUE, Telling, times, tries

#: what takes a result back, whatever its kind
RETRACTION = "retraction"
_KIND = {
    ArtifactKind.SEG: "SEG",
    ArtifactKind.SR: "SR",
    ArtifactKind.SC: "secondary captures",
    ArtifactKind.PDF: "PDF",
    ArtifactKind.ORU: "HL7 message",
}


def named(artifact: ArtifactRow) -> str:
    """What an artifact is called in lists: its kind, or that it takes a result back."""
    return RETRACTION if takes_back(artifact) else artifact.kind.value.upper()


def deliveries(detail: JobDetail, account: Account, told: Telling) -> Iterator[str]:
    """A sentence for each destination and state, those that need somebody first.

    What is to be done is added to ``told``.
    """
    kinds = {
        each.id: RETRACTION if takes_back(each) else _KIND.get(each.kind, each.kind.value)
        for each in detail.artifacts
    }

    def order(row: Delivery) -> tuple[int, str, str]:
        urgency = _REPLACED if _is_replaced(row) else _URGENCY[row.state]
        return (urgency, row.destination, row.error or "")

    for (_, destination, _), group in groupby(sorted(detail.deliveries, key=order), key=order):
        rows = list(group)
        what = " and ".join(sorted({kinds[row.artifact_id] for row in rows}))
        yield _delivery(what, destination, rows, account, told)


_URGENCY = {
    DeliveryState.EXHAUSTED: 0,
    DeliveryState.REFUSED: 1,
    DeliveryState.PENDING: 2,
    DeliveryState.SENDING: 3,
    DeliveryState.SENT: 4,
    DeliveryState.COMMITTED: 5,
}
_REPLACED = 6


def _is_replaced(row: Delivery) -> bool:
    """Whether other forms of the result go to a destination that does not take this one."""
    return row.state is DeliveryState.REFUSED and row.form_id is not None


def _delivery(
    what: str, destination: str, rows: Sequence[Delivery], account: Account, told: Telling
) -> str:
    row = max(rows, key=lambda each: each.attempts)
    again = " and ".join(f"hipscore retry --delivery {each.id}" for each in rows)
    when = told.at(row.finished_at)
    error = row.error or ""
    if row.state is DeliveryState.COMMITTED:
        return f"{what} COMMITTED at {destination} {when}"
    if row.state is DeliveryState.SENT:
        return _sent(f"{what} SENT to {destination} {when}", row, told)
    if row.state is DeliveryState.SENDING:
        return f"{what} being sent to {destination} (try {row.attempts})"
    if row.state is DeliveryState.REFUSED:
        return _refused(what, destination, row, again, told)
    if row.state is DeliveryState.EXHAUSTED:
        told.advise(
            f"mend the way to {destination}, then: hipscore retry --all-exhausted "
            f"--destination {destination}"
        )
        return f"{what} given up at {when} after {tries(row.attempts)}: {error}"
    return _pending(what, destination, rows, account, told)


def _refused(what: str, destination: str, row: Delivery, again: str, told: Telling) -> str:
    error = row.error or ""
    if row.error == WITHDRAWN:
        return f"{what} not sent to {destination}: withdrawn before"
    if _is_replaced(row):
        if isinstance(parse(destination), Mllp) or row.form_id == row.artifact_id:
            return f"{what} not sent to {destination}: {error}"  # withdrawn, or a later one goes
        return f"{what} not taken: {error}; secondary captures and PDF go there instead"
    told.advise(f"{_mending(row, destination)}, then: {again}")
    return f"{what} REFUSED: {error}"


def _sent(text: str, row: Delivery, told: Telling) -> str:
    if not isinstance(parse(row.destination), Peer):
        return text  # its answer was all there is to be had
    if row.commit_at is None:
        return f"{text}; {row.error or 'storage commitment is not asked for'}"
    if row.commit_attempts == 0:
        return f"{text}; its storage commitment is about to be asked for"
    told.advise(
        f"nothing to do: asked again at {told.at(row.commit_at)}. A PACS that never reports has "
        "to know our AE title, address and port, or is named in HIPSCORE_NO_COMMITMENT"
    )
    asked = f"commitment asked for {times(row.commit_attempts)}"
    return f"{text}; {asked}: {row.error or 'no report yet'}"


def _mending(row: Delivery, destination: str) -> str:
    """What an operator has to do about what was refused."""
    kind = parse(destination)
    if isinstance(kind, DicomWeb) and row.status in {401, 403}:
        return f"let {destination} know us (authorization_file in the rules file)"
    if isinstance(kind, Mllp):
        return f"see in the log of {destination} what it did not like"
    return f"let {destination} accept it"


def _remedy(row: Delivery, destination: str) -> str:
    """What an operator may look at; by itself it is tried again anyway."""
    error = row.error or ""
    if row.status is not None:
        return "nothing to do: it is tried again by itself"
    if "certificate" in error:
        return f"let this machine trust the certificate of {destination}; it is tried again"
    if "cannot be reached" in error:
        return f"check that {destination} runs and its host and port are right; it is tried again"
    if not isinstance(parse(destination), Peer):
        return f"see in the log of {destination} why; it is tried again"
    return (
        f"check that {destination} knows HIPSCORE_AE_TITLE and the address of this machine "
        "and lets it store; it is tried again"
    )


def _pending(
    what: str, destination: str, rows: Sequence[Delivery], account: Account, told: Telling
) -> str:
    row = max(rows, key=lambda each: each.attempts)
    again = " and ".join(f"hipscore retry --delivery {each.id}" for each in rows)
    due = row.next_attempt_at or row.created_at
    wait = "wait" if " and " in what else "waits"
    now = told.around.now
    if not row.error:
        if now - due > OVERDUE:
            told.advise(
                'is "hipscore work" for the queue "delivery" (or "hipscore up") running?'
                if row.enqueued_at is not None
                else 'is the broker up, and "hipscore beat" running?'
            )
            return f"{what} {wait} to be sent to {destination} since {told.at(due)}; nobody does"
        return f"{what} about to be sent to {destination}"
    since = _failing_since(rows, account.events)
    text = f"{what} {wait}: {row.error}, since {told.at(since)}, {tries(row.attempts)}"
    if due > now:
        told.advise(f"{_remedy(row, destination)}; at once: {again}")
        return f"{text}, next at {told.at(due)}"
    if now - due > OVERDUE:
        told.advise('is "hipscore work" (or "hipscore up") running?')
        return f"{text}, due since {told.at(due)}"
    return f"{text}, next now"


def _failing_since(rows: Sequence[Delivery], events: Sequence[Event]) -> datetime:
    """When the trouble of these deliveries began."""
    ids = {row.id for row in rows}
    began: datetime | None = None
    for event in events:
        if event.delivery_id not in ids:
            continue
        if event.what in {"retry", "sent"}:
            began = None
        elif event.what in {"postpone", "expire", "decline"} and began is None:
            began = event.at
    return began or min(row.created_at for row in rows)
