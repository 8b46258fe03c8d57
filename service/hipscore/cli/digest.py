"""The ledger in short: one line per thing that happened, equal ones folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hipscore.store.account import Account
from hipscore.store.tables import Event
from hipscore.store.whereabouts import named


@dataclass(slots=True, kw_only=True)
class Line:
    """One line: when, about what, what happened; how often, and until when."""

    at: datetime
    about: str
    text: str
    until: datetime
    count: int = 1


def every(account: Account) -> list[Line]:
    """A line for each event."""
    return [_line(event, account) for event in account.events]


def condensed(account: Account) -> list[Line]:
    """Lines without what goes without saying; runs of the same for one subject are one line.

    Taking something in hand is left out where its outcome follows.
    """
    lines: list[Line] = []
    last: dict[tuple[str, int | None], Line] = {}
    for event, following in zip(account.events, _following(account), strict=True):
        if event.what == "claim" and following is not None:
            continue
        line = _line(event, account)
        subject = (line.about, event.delivery_id or event.job_id)
        before = last.get(subject)
        if before is not None and before.text == line.text:
            before.count += 1
            before.until = line.until
            continue
        lines.append(line)
        last[subject] = line
    return lines


def _following(account: Account) -> list[Event | None]:
    """For each event the next one of the same subject."""
    following: list[Event | None] = []
    after: dict[tuple[int | None, int | None], Event] = {}
    for event in reversed(account.events):
        subject = (event.job_id, event.delivery_id)
        following.append(after.get(subject))
        after[subject] = event
    return following[::-1]


def _line(event: Event, account: Account) -> Line:
    about, where = "series", ""
    if event.delivery_id is not None:
        about, where = _delivery(event.delivery_id, account)
    elif event.job_id is not None:
        about = f"job {event.job_id}"
    detail = event.detail or {}
    if event.what == "sent":
        detail = {**detail, "answer": _answer(detail.get("status"))}
    kind = "delivery" if event.delivery_id is not None else "job" if event.job_id else "series"
    words = _WORDS.get(f"{kind} {event.what}") or _WORDS.get(event.what)
    text = words.format_map(_Missing(detail)) if words else _plain(event.what, detail)
    if where and event.what in {"open", "sent", "commit"}:
        text = f"{text} {where}"
    return Line(at=event.at, about=about, text=" ".join(text.split()), until=event.at)


def _delivery(delivery_id: int, account: Account) -> tuple[str, str]:
    """What a delivery carries, with its number, and where to."""
    for job in account.jobs:
        kinds = {each.id: named(each) for each in job.artifacts}
        for row in job.deliveries:
            if row.id == delivery_id:
                return f"{kinds[row.artifact_id]} {delivery_id}", row.destination
    return f"delivery {delivery_id}", ""


def _answer(status: object) -> str:
    """What a peer answered, where its answer is a number: a receiver of HL7 gives none."""
    return "" if status is None else f"({status})"


def _plain(what: str, detail: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name}={value}" for name, value in detail.items() if value is not None)
    return f"{what.replace('_', ' ')}: {shown}" if shown else what.replace("_", " ")


class _Missing(dict[str, Any]):
    """A detail that an event does not have is shown as nothing."""

    def __missing__(self, key: str) -> str:
        return ""


_WORDS = {
    "series open": "first image from {calling_aet}@{peer}",
    "series image": "late image, open again",
    "series close": "closed by {reason} with {images} images",
    "series match": "to be analysed ({rule})",
    "series ignore": "ignored ({rule})",
    "series order": "to be analysed all the same ({rule})",
    "series conflict": "image came again with other content; the first is kept",
    "series misplaced": "image refused: it says another study",
    "series abort": "the sender broke off",
    "series restore": "purged images come again",
    "job open": "queued with {images} images for {bundle}",
    "job claim": "taken by a worker, attempt {attempt}",
    "job analysed": "analysed",
    "job not_scorable": "not scorable: {reason}",
    "job expire": "taken back from its worker: {error}",
    "job order_found": "order found ({source})",
    "series identity_conflict": "images of somebody else than the study",
    "job identity_conflict": "images of somebody else than the study",
    "job order_not_found": "no order found",
    "job order_unknown": "order not known: {peer} did not answer",
    "job earlier_found": "earlier results: {scores}, brought from the PACS: {brought}",
    "job earlier_unknown": "earlier reports may be missing: {peer} did not answer",
    "delivery open": "to be sent to",
    "delivery claim": "is being sent, attempt {attempt}",
    "delivery sent": "sent {answer} to",
    "delivery commit": "committed at",
    "delivery decline": "not kept: {error}",
    "delivery refuse": "refused: {error}",
    "delivery exhaust": "given up: {error}",
    "delivery expire": "taken back from its worker: {error}",
    "postpone": "put off: {error}",
    "fail": "failed: {error}",
    "retry": "queued again by an operator, or by itself",
    "rebind": "from bundle {from} to {to}",
    "purge": "purged: {what}, {files} files",
    "commitment_asked": "asked for storage commitment",
    "no_report": "{error}",
    "commitment_failed": "commitment not asked for: {error}",
    "no_commitment_offered": "{error}",
}
