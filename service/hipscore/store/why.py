"""Why a series was (not) scored, and where its result is: from rows to sentences.

A pure function of the rows (:mod:`hipscore.store.account`): it reads nothing and changes
nothing. Times are UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from hipscore.lifecycle import CloseReason, JobState, SeriesState
from hipscore.routing import EXPLAINED, NO_RULE, ORDERED, Action
from hipscore.store.account import Account, Surroundings
from hipscore.store.outbox import arrived
from hipscore.store.queries import JobDetail
from hipscore.store.retention import IMAGES_PURGED
from hipscore.store.tables import Event, Job
from hipscore.store.telling import OVERDUE, Telling, analyses, duration, images, times, tries
from hipscore.store.whereabouts import deliveries

#: a series that is silent for this much longer than the quiet period should have been closed
UNREAPED = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be said of one series.

    ``sentences``: the most important first. ``what_next``: who acts, when, and what an
    operator can do.
    """

    series_instance_uid: str
    sentences: tuple[str, ...]
    what_next: tuple[str, ...]


def explain(account: Account, around: Surroundings) -> Verdict:
    """What happened to a series, where its result is, and who has to do what."""
    told = Telling(around)
    newest = account.jobs[0] if account.jobs else None
    state = account.series.state
    if state is SeriesState.RECEIVING:
        _open(account, told)
    elif state is SeriesState.IGNORED:
        _ignored(account, told)
    elif newest is None:
        told.say("complete; its analysis is about to be opened")
    else:
        _job(newest, account, told)
        _asked_for(account, told)
    for older in account.jobs if state is SeriesState.RECEIVING else account.jobs[1:]:
        _earlier(older, told)
    _closed_by_silence(account, told)
    _refused_images(account, told)
    _purged(account, told)
    return Verdict(
        series_instance_uid=account.series.series_instance_uid,
        sentences=tuple(told.sentences),
        what_next=tuple(told.what_next) or ("nothing to do",),
    )


# --- the series ----------------------------------------------------------------------------


def _open(account: Account, told: Telling) -> None:
    silent = told.around.now - account.series.last_received_at
    quiet = timedelta(seconds=told.around.quiet_seconds)
    text = f"open: {images(account.images)}, last {duration(silent)} ago"
    if silent > quiet + UNREAPED:
        told.say(
            f"{text}; should have been closed after {duration(quiet)} of silence, but nobody did",
            'the reaper closes series: is "hipscore beat" (or "hipscore up") running?',
        )
    else:
        told.say(
            f"{text}; closes after {duration(quiet)} of silence",
            "nothing to do: it is analysed when it is closed",
        )
    closed = max((each.id for each in account.events if each.what == "close"), default=0)
    broken = _broken_off([each for each in account.events if each.id > closed])
    if broken is not None:
        told.say(_broken(broken, told))


def _ignored(account: Account, told: Telling) -> None:
    if account.series.match_rule == "localizer":
        told.say(
            f"ignored: nothing but scouts (localizer), {images(account.images)}; it is not "
            "analysed and nothing is sent",
            "nothing to do; only a series with other images than scouts is scored",
        )
    elif account.series.match_rule == NO_RULE and (due := _report_due(account, told)) is not None:
        told.say(
            f"ignored: no rule matches it. {_unmatched(account)}".rstrip(),
            f"nothing to do: a report that says why follows at {due:%H:%M:%S}, unless a series "
            "of the study that matches comes",
        )
    elif account.series.match_rule == NO_RULE:
        told.say(
            f"ignored: no rule matches it; nothing is sent. {_unmatched(account)}".rstrip(),
            "nothing to do, unless it should be scored: hipscore rules test FOLDER (with its "
            "images) says what was found; then change the rules (HIPSCORE_RULES)",
        )
    else:
        told.say(
            f"ignored by the rule {account.series.match_rule}; nothing is sent",
            "nothing to do, unless it should be scored: hipscore rules show lists the rules",
        )


def _report_due(account: Account, told: Telling) -> datetime | None:
    """When the report that says why no rule matched is made; None if none is awaited."""
    if not told.around.explains or account.unmatched_since is None:
        return None
    due = account.unmatched_since + timedelta(seconds=told.around.quiet_seconds)
    return due if told.around.now - due <= UNREAPED else None


def _unmatched(account: Account) -> str:
    """What the rules that score had against it."""
    last = next((each for each in reversed(account.events) if each.what == "ignore"), None)
    lines = [] if last is None else [str(line) for line in last.detail.get("why", ())]
    return "; ".join(line for line in lines if f"({Action.SCORE}):" in line)


def _asked_for(account: Account, told: Telling) -> None:
    if account.series.match_rule == EXPLAINED:
        told.say(
            "no rule matches a series of its study; of all of them this one came nearest, and "
            f"its report says why. {_unmatched(account)}".rstrip(),
            "should it be scored? hipscore rules test FOLDER says what was found",
        )
    elif account.series.match_rule == ORDERED:
        told.say("analysed because somebody asked for it, whatever the rules say")


def _closed_by_silence(account: Account, told: Telling) -> None:
    closings = [
        each
        for each in account.events
        if each.what == "close" and each.detail.get("reason") == CloseReason.QUIET_PERIOD
    ]
    last = max((each.id for each in account.events if each.what == "close"), default=0)
    for closing in closings[-1:]:
        first = "" if closing.id == last else "at first "
        broken = _broken_off([each for each in account.events if each.id < closing.id])
        cause = (
            "there was no proof that the sender was done (a listener that dies leaves none)"
            if broken is None
            else f"the sender broke off at {told.at(broken.at)}"
        )
        told.say(
            f"{first}closed at {told.at(closing.at)} by silence, with "
            f"{images(closing.detail.get('images', account.images))}: {cause}"
        )
    late = [each for each in account.events if each.what == "image" and each.detail.get("late")]
    if late:
        many = "an image came late" if len(late) == 1 else f"images came late {len(late)} times"
        told.say(f"{many}, the last time at {told.at(late[-1].at)}: the series was opened again")


def _refused_images(account: Account, told: Telling) -> None:
    conflicts = _named(account.events, "conflict")
    if conflicts:
        told.say(
            f"conflict: {images(len(conflicts))} came again with other content under the same "
            "UID; the first is kept",
            "ask the sender why it gives one SOP Instance UID to different images",
        )
    misplaced = _named(account.events, "misplaced")
    if misplaced:
        studies = sorted(
            {str(each.detail.get("study_instance_uid")) for each in misplaced.values()}
        )
        told.say(
            f"{images(len(misplaced))} of this series refused (0xC211): the sender says they "
            f"belong to study {', '.join(studies)}, the series is known in study "
            f"{account.series.study_instance_uid}",
            "correct the Study Instance UID at the sender, then send them again",
        )


def _purged(account: Account, told: Telling) -> None:
    if not account.purged:
        return
    last = next((e for e in reversed(account.events) if e.what == "purge" and not e.job_id), None)
    why = {"watermark": " because the disk was too full", "by hand": " by an operator"}
    reason = why.get(str(last.detail.get("why")), "") if last is not None else ""
    told.say(
        f"{account.purged} of {images(account.images)} purged on {account.purged_at:%Y-%m-%d}"
        f"{reason}; rows and results stay"
    )


def _named(events: Sequence[Event], what: str) -> dict[str, Event]:
    """The last event of this kind for each image."""
    return {str(each.detail.get("sop_instance_uid")): each for each in events if each.what == what}


def _broken_off(events: Sequence[Event]) -> Event | None:
    """The last line that says that an association ended without a release."""
    return next((each for each in reversed(events) if each.what == "abort"), None)


def _broken(event: Event, told: Telling) -> str:
    return f"the sender broke off at {told.at(event.at)}, in the middle of the series"


# --- the job -------------------------------------------------------------------------------


def _job(detail: JobDetail, account: Account, told: Telling) -> None:
    job = detail.job
    deaths = [e for e in account.events if e.job_id == job.id and e.what == "expire"]
    if job.state is JobState.QUEUED:
        _queued(job, deaths, account, told)
    elif job.state is JobState.ANALYSING:
        _analysing(job, deaths, told)
    elif job.state is JobState.FAILED:
        _failed(job, account, told)
    else:
        _finished(detail, account, told)
        if deaths:
            told.say(
                f"{times(len(deaths))} a worker that held it died, the last at "
                f"{told.at(deaths[-1].at)}; another finished it"
            )
    if job.supersedes_id is not None:
        told.say(f"job {job.id} supersedes job {job.supersedes_id} of the same series")


def _queued(job: Job, deaths: Sequence[Event], account: Account, told: Telling) -> None:
    now = told.around.now
    retry = f"hipscore retry {job.id}"
    earlier = next((each.job for each in account.jobs if each.job.id == job.supersedes_id), None)
    if job.next_attempt_at is not None and job.next_attempt_at > now:
        told.say(
            f"waits: {job.error}; {tries(job.attempts)}, next at {told.at(job.next_attempt_at)}",
            f"nothing to do; at once: {retry}",
        )
        return
    if earlier is not None and earlier.state in {JobState.QUEUED, JobState.ANALYSING}:
        told.say(f"waits for job {earlier.id}, which it supersedes")
        _job(next(each for each in account.jobs if each.job is earlier), account, told)
        return
    since = max(filter(None, (job.created_at, job.next_attempt_at, *(e.at for e in deaths))))
    text = (
        f"the worker that held it died (attempt {job.attempts}); it waits for another"
        if deaths and deaths[-1].detail.get("attempt") == job.attempts
        else "queued"
    )
    if now - since <= OVERDUE:
        told.say(f"{text} since {told.at(since)}", "nothing to do: a worker takes it next")
    elif told.around.busy:
        told.say(
            f"{text} since {told.at(since)}: the workers are busy with "
            f"{analyses(told.around.busy)}, {analyses(max(0, told.around.ahead - 1))} more "
            "in the queue",
            "nothing to do; more workers: hipscore work --queue analysis",
        )
    elif job.enqueued_at is None:
        told.say(
            f"{text} since {told.at(since)}, and not announced to the workers: nothing reached "
            "the broker",
            'is the broker up, and "hipscore beat" running?',
        )
    else:
        told.say(
            f"{text} since {told.at(since)}, announced at {told.at(job.enqueued_at)}, and no "
            "worker takes it",
            'is "hipscore work" (or "hipscore up") running?',
        )


def _analysing(job: Job, deaths: Sequence[Event], told: Telling) -> None:
    silent = job.lease_until is not None and job.lease_until < told.around.now
    if silent:
        told.say(
            f"its worker is silent since before {told.at(job.lease_until)} "
            f"(attempt {job.attempts})",
            'the reaper gives it to another: is "hipscore beat" running?',
        )
    elif deaths:
        told.say(
            f"the worker that held it died (attempt {deaths[-1].detail.get('attempt')}); it was "
            f"taken back at {told.at(deaths[-1].at)} and is analysed by another "
            f"(attempt {job.attempts})",
            "nothing to do",
        )
    else:
        told.say(f"is being analysed (attempt {job.attempts})", "nothing to do")


def _deaths(job: Job, account: Account) -> int:
    """How many workers the job lost since it was opened or retried, the last one included."""
    own = [
        each.what for each in account.events if each.job_id == job.id and each.delivery_id is None
    ]
    since = len(own) - own[::-1].index("retry") if "retry" in own else 0
    return 1 + own[since:].count("expire")


def _failed(job: Job, account: Account, told: Telling) -> None:
    error = (job.error or "no error was recorded").rstrip(".")
    if job.reason_code == IMAGES_PURGED:
        told.say(
            f"failed: {error}",
            "send the whole series again: the analysis is queued again by itself",
        )
        return
    fails = [each for each in account.events if each.job_id == job.id and each.what == "fail"]
    if fails and "attempt" in fails[-1].detail:  # by the reaper, not by the worker that held it
        lost = times(_deaths(job, account))
        told.say(
            f"failed at {told.at(job.finished_at)}: its worker died {lost} in the "
            "analysis; given up before it kills more. Nothing was sent",
            "look for the cause in the log of the worker and the kernel (out of memory?), "
            f"then: hipscore retry {job.id}",
        )
        return
    told.say(
        f"failed at {told.at(job.finished_at)} after {tries(job.attempts)}: {error}. "
        "Nothing was sent",
        f"see the log of the worker; when it is mended: hipscore retry {job.id}",
    )


def _finished(detail: JobDetail, account: Account, told: Telling) -> None:
    result = detail.job.result or {}
    reason = result.get("reason")
    if detail.job.state is JobState.NOT_SCORABLE and reason:
        verdict = f"not scorable: {reason['code']} ({reason['text'].rstrip('.')})"
    else:
        score = result.get("unet_score")
        shown = score is not None and detail.job.withdrawn_at is None
        verdict = f"scored {score:.2f}" if shown else "scored"
    parts = list(deliveries(detail, account, told))
    if not detail.deliveries:
        parts = ["sent nowhere, because no destination was set (HIPSCORE_DESTINATIONS)"]
    if detail.job.withdrawn_at is not None:
        told.say(
            f"withdrawn by an operator at {told.at(detail.job.withdrawn_at)} "
            f"({_withdrawal(detail.job, account)}), it is not to be used; it was {verdict}",
            "nothing brings it back; other images of the series make a new result",
        )
    else:
        parts[0] = f"{verdict}; {parts[0]}"
    for part in parts:
        told.say(part)


def _withdrawal(job: Job, account: Account) -> str:
    lines = [each for each in account.events if each.job_id == job.id and each.what == "withdraw"]
    codes = [str(each.detail["reason"]) for each in lines if "reason" in each.detail]
    return f"reason: {codes[-1]}" if codes else "no reason"


def _earlier(detail: JobDetail, told: Telling) -> None:
    """An earlier report matters only while it is on its way."""
    under_way = [
        each for each in detail.deliveries if not arrived(each.state, each.commit_at, each.form_id)
    ]
    if under_way:
        states = ", ".join(sorted({each.state.value for each in under_way}))
        told.say(f"the report of the earlier job {detail.job.id} is still {states}")
