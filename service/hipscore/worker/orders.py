"""Whose study it is, for whom, and what was there before: asked while the networks work.

Nobody who is asked can fail an analysis or hold it up for more than :data:`LONGEST`
seconds. What could not be learnt is left open, and the ledger says so.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset

from hipscore import pacs
from hipscore.addresses import Peer
from hipscore.domain import EarlierScore, Outcome, StudyIdentity
from hipscore.header import Unreadable
from hipscore.identity import identity
from hipscore.keeping import head
from hipscore.keeping.reports import NotOurs, read_arrived
from hipscore.reporting.earlier import EarlierReport
from hipscore.store import earlier, ledger, studies
from hipscore.store import engine as database
from hipscore.store.tables import Job, Series
from hipscore.worker.bench import Bench, now_utc, trace

#: how long an analysis waits for all that it asks, from its beginning, seconds
LONGEST = 10.0
TIMEOUTS = pacs.Timeouts(connection=5.0, acse=5.0, dimse=5.0)
#: UIDs in one line of the ledger
_SHOWN = 20
_WILD = frozenset("*?\\")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """What a report is to know: whose study it is, and earlier scores, newest first."""

    identity: StudyIdentity
    earlier: tuple[EarlierScore, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Study:
    """What is known before anybody is asked."""

    subject: ledger.Subject
    uid: str
    identity: StudyIdentity
    #: the patient as the images have it, and as it stands in the database
    patient_keys: frozenset[str]
    known_reports: frozenset[str]
    #: the images are not of the patient of their study: nothing is asked, nothing earlier counts
    conflict: bool


@dataclass(slots=True, kw_only=True)
class _Answers:
    """What has been answered so far. Each thread fills its own part, the analysis reads it."""

    order: StudyIdentity | None = None
    order_asked: bool = False
    order_done: bool = False
    brought: pacs.Brought | None = None
    reports: list[tuple[EarlierReport, StudyIdentity]] = field(default_factory=list)
    reports_asked: bool = False
    #: who did not answer, by what was asked
    silent: dict[str, Peer] = field(default_factory=dict)
    heard: set[Peer] = field(default_factory=set)


@contextmanager
def asking(
    job: Job, series: Series, images: Sequence[Dataset], at: Bench
) -> Iterator[Callable[[], Background]]:
    """Ask for order and earlier reports in threads, for as long as the context lasts.

    Yields
    ------
    callable
        Waits for what is still open, keeps what was found, and returns it.

    Raises
    ------
    hipscore.domain.Transient
        If the database cannot be used now.
    """
    until = time.monotonic() + LONGEST
    study = _study(job, series, images, at)
    answers = _Answers()
    works = _works(study, answers, at)
    if not works:
        yield lambda: _settled(study, answers, at)
        return
    threads = [threading.Thread(target=_run, args=(work,), daemon=True) for work in works]
    # Filters of warnings are the process's: threads that set and restore them by turns would
    # undo each other's. pydicom's quote what an answer says of a patient.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thread in threads:
            thread.start()

        def settled() -> Background:
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
            return _settled(study, answers, at)

        yield settled


def _study(job: Job, series: Series, images: Sequence[Dataset], at: Bench) -> _Study:
    shown = identity(images[0])
    with database.transaction(at.sessions) as session:
        row = studies.by_uid(series.study_instance_uid, session=session)
        whose = shown if row is None else studies.of(row)
        conflict = studies.conflict(whose, shown)
        if conflict:
            whose = shown  # the report names the patient of its own images
        # An issuer may have become known by an order; reports were written without it.
        same = shown.patient_id == whose.patient_id
        keys = {whose.patient_key, shown.patient_key if same else None} - {None}
        patient_keys = frozenset(key for key in keys if key is not None and not conflict)
        return _Study(
            subject=ledger.Subject(series_id=series.id, job_id=job.id),
            uid=series.study_instance_uid,
            identity=whose,
            patient_keys=patient_keys,
            known_reports=frozenset(earlier.known(patient_keys, session=session)),
            conflict=conflict,
        )


def _works(study: _Study, answers: _Answers, at: Bench) -> list[Callable[[], None]]:
    """What there is to ask."""
    works: list[Callable[[], None]] = []
    if study.conflict:
        return works
    settings = at.settings
    if (
        (settings.worklist_peer is not None or settings.query_peer is not None)
        and _incomplete(study.identity)
        and study.uid not in at.memory.ordered
    ):
        answers.order_asked = True
        works.append(lambda: _ask_for_order(study, answers, at))
    if (
        settings.earlier_reports
        and settings.query_peer is not None
        and study.identity.study_date
        and study.identity.patient_key is not None
        and not _WILD & set(study.identity.patient_id)
    ):
        answers.reports_asked = True
        works.append(lambda: _ask_for_reports(study, answers, at))
    return works


def _incomplete(whose: StudyIdentity) -> bool:
    """Whether an order could say more."""
    procedure = whose.requested_procedure_id or whose.requested_procedure_description
    return not (whose.accession_number and procedure and whose.referring_physician)


def _run(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - what is asked beside an analysis cannot fail it
        log.error("asking beside an analysis failed: %s", trace(error))  # noqa: TRY400


def _ask_for_order(study: _Study, answers: _Answers, at: Bench) -> None:
    """Ask the worklist, and the PACS where that does not know it."""
    for peer, ask in (
        (at.settings.worklist_peer, pacs.order_from_worklist),
        (at.settings.query_peer, pacs.order_from_pacs),
    ):
        if peer is None:
            continue
        if not at.memory.silent.over(_number(peer)):
            answers.silent["order"] = peer
            continue
        found = ask(
            peer, study.uid, study.identity, calling_aet=at.settings.ae_title, timeouts=TIMEOUTS
        )
        if isinstance(found, Outcome):
            log.warning("no order: %s", found.text)
            answers.silent["order"] = peer
            continue
        answers.heard.add(peer)
        if found is not None:
            answers.order = found
            break
    answers.order_done = True


def _ask_for_reports(study: _Study, answers: _Answers, at: Bench) -> None:
    peer = at.settings.query_peer
    if peer is None:
        return
    if not at.memory.silent.over(_number(peer)):
        answers.silent["reports"] = peer
        return
    brought = pacs.bring_reports(
        peer,
        study.identity.patient_id,
        until_date=study.identity.study_date,
        other_than=study.uid,
        known=study.known_reports,
        calling_aet=at.settings.ae_title,
        seconds=LONGEST - 1.0,
        timeouts=TIMEOUTS,
    )
    if brought.silent is not None:
        log.warning("earlier reports may be missing: %s", brought.silent)
        answers.silent["reports"] = peer
    else:
        answers.heard.add(peer)
    for each in brought.objects:
        report = _report(each)
        if report is not None:
            answers.reports.append(report)
    answers.brought = brought


def _report(brought: pacs.Arrived) -> tuple[EarlierReport, StudyIdentity] | None:
    data = head(
        sop_class_uid=brought.sop_class_uid,
        sop_instance_uid=brought.sop_instance_uid,
        transfer_syntax_uid=brought.transfer_syntax_uid,
    )
    try:
        return read_arrived(data + brought.data, (brought.sop_class_uid, brought.sop_instance_uid))
    except (Unreadable, NotOurs):
        return None


def _settled(study: _Study, answers: _Answers, at: Bench) -> Background:
    """Keep what was found, write it down, and say what is known now."""
    order, reports, brought = answers.order, tuple(answers.reports), answers.brought
    _remember(study, answers, at)
    with database.transaction(at.sessions) as session:
        now = now_utc()
        refused = order is not None and not studies.complete(
            study.uid, order, now=now, session=session
        )
        for report, of_whom in reports:
            earlier.keep(report, whose=of_whom, now=now, session=session)
        row = None if study.conflict else studies.by_uid(study.uid, session=session)
        whose = study.identity if row is None else studies.of(row)
        found = earlier.find(study.uid, whose, study.patient_keys, session=session)
        if study.conflict:
            ledger.append(study.subject, earlier.IDENTITY_CONFLICT, now=now, session=session)
        for what, detail in (
            *_about_order(answers, None if refused else order, at, refused=refused),
            *_about_earlier(answers, found, brought, len(reports), at),
        ):
            ledger.append(study.subject, what, detail=detail, now=now, session=session)
    return Background(identity=whose, earlier=found.scores)


def _about_order(
    answers: _Answers, order: StudyIdentity | None, at: Bench, *, refused: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The line of the ledger about the order; no value of it is in there."""
    if not answers.order_asked:
        return
    silent = answers.silent.get("order")
    if silent is None and not answers.order_done:
        silent = at.settings.worklist_peer or at.settings.query_peer
    if refused:
        yield "order_not_found", {"contradicted": 1}
    elif order is not None:
        yield "order_found", {"source": order.order_source}
    elif silent is not None:
        yield "order_unknown", {"peer": str(silent)}
    else:
        yield "order_not_found", {}


def _about_earlier(
    answers: _Answers,
    found: earlier.Found,
    brought: pacs.Brought | None,
    kept: int,
    at: Bench,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of the ledger about earlier results."""
    if found.scores or found.contradicted or brought is not None:
        yield (
            "earlier_found",
            {
                "scores": len(found.scores),
                "contradicted": found.contradicted,
                "reports": [each.sr_instance_uid for each in found.scores[:_SHOWN]],
                "in_pacs": 0 if brought is None else len(brought.found),
                "brought": kept + (0 if brought is None else len(brought.moved)),
            },
        )
    if answers.reports_asked and (brought is None or brought.silent is not None):
        yield "earlier_unknown", {"peer": str(at.settings.query_peer)}


def _remember(study: _Study, answers: _Answers, at: Bench) -> None:
    """Spare those who were silent for a while, and whoever has told all."""
    silent = set(answers.silent.values())
    for peer in silent:
        if at.memory.silent.over(_number(peer)):
            at.memory.silent.grow(_number(peer))
    for peer in answers.heard - silent:
        at.memory.silent.forget(_number(peer))
    if answers.order is not None:
        at.memory.remember_order(study.uid)


def _number(peer: Peer) -> int:
    return hash(str(peer))
