"""What only an operator can mend, and the death of the process that does what he says.

These faults leave a job FAILED, or a delivery REFUSED or EXHAUSTED, as they must: an image
lost on the disk, a PACS that says it will never take the object, one attempt allowed. Then
the cause is removed and ``hipscore retry`` is killed in its work, and said again.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import select

from hipscore.lifecycle import DeliveryState, JobState
from hipscore.store import engine as database
from hipscore.store.tables import ArtifactRow, Delivery, Instance, Job, Series
from tests.faults.acts import finished, series
from tests.faults.launch import When
from tests.faults.pacs_front import Mood
from tests.faults.sender import Scan
from tests.faults.stage import Stage, launched
from tests.faults.verdict import Round
from tests.processes import wait_until


def job_fails(stage: Stage, round_: Round, *, when: When) -> None:
    """An image is gone from the spool: FAILED. It comes back, and the job is retried."""
    hurt = series(stage, round_)
    stage.order("analysis", "job.fail.ANALYSING", when)
    stage.modality.send(hurt, release=False)  # the quiet period leaves time to take it away
    file = _first_image(stage, hurt)
    aside = stage.root / f"aside-{round_.number}"
    shutil.move(file, aside)
    stage.await_blow("analysis")
    _wait(stage, hurt, lambda jobs, _: [each.state for each in jobs] == [JobState.FAILED])
    shutil.move(aside, file)
    with stage.keeper.absent("analysis"):
        for state in (JobState.FAILED, JobState.QUEUED):
            number = _jobs(stage, hurt)[0].id
            _retry(stage, round_, f"job.retry.{state.value}", when, str(number))


def delivery_refused(stage: Stage, round_: Round, *, when: When) -> None:
    """The PACS refuses for good; later it does not, and the deliveries are retried."""
    hurt = series(stage, round_)
    with stage.pacs(Mood.REFUSE):
        stage.order("delivery", "delivery.refuse.SENDING", when)
        stage.modality.send(hurt)
        stage.await_blow("delivery")
        _wait(stage, hurt, _all_are(DeliveryState.REFUSED))
    with stage.keeper.absent("delivery"):
        for state in (DeliveryState.REFUSED, DeliveryState.PENDING):
            for each in _deliveries(stage, hurt):
                point = f"delivery.retry.{state.value}"
                _retry(stage, round_, point, when, "--delivery", str(each.id))


def delivery_exhausted(stage: Stage, round_: Round, *, when: When) -> None:
    """One attempt is allowed and the PACS is full; then it is not, and it is retried."""
    hurt = series(stage, round_)
    stage.keeper.change("delivery", HIPSCORE_MAX_ATTEMPTS="1")
    try:
        with stage.pacs(Mood.FULL):
            stage.order("delivery", "delivery.exhaust.SENDING", when)
            stage.modality.send(hurt)
            stage.await_blow("delivery")
            _wait(stage, hurt, _all_are(DeliveryState.EXHAUSTED))
    finally:
        stage.keeper.change("delivery", HIPSCORE_MAX_ATTEMPTS="60")
    for each in _deliveries(stage, hurt):
        _retry(stage, round_, "delivery.retry.EXHAUSTED", when, "--delivery", str(each.id))


def commitment_refused(stage: Stage, round_: Round, *, when: When) -> None:
    """The PACS stores an object and says that it will never commit to it."""
    _not_committed(stage, round_, Mood.COMMIT_REFUSE, DeliveryState.REFUSED, when)


def commitment_exhausted(stage: Stage, round_: Round, *, when: When) -> None:
    """One attempt is allowed, and the PACS does not have the object it had stored."""
    stage.keeper.change("listener", HIPSCORE_MAX_ATTEMPTS="1")
    stage.await_service()
    try:
        _not_committed(stage, round_, Mood.COMMIT_NOT, DeliveryState.EXHAUSTED, when)
    finally:
        stage.keeper.change("listener", HIPSCORE_MAX_ATTEMPTS="60")
        stage.await_service()


def uncommitted_again(stage: Stage, round_: Round, *, when: When) -> None:
    """No report on the commitment comes, and the operator has everything sent again."""
    hurt = series(stage, round_)
    with stage.pacs(Mood.COMMIT_NEVER):
        stage.modality.send(hurt)
        _wait(stage, hurt, _all_are(DeliveryState.SENT))
        for each in _deliveries(stage, hurt):
            _retry(stage, round_, "delivery.retry.SENT", when, "--delivery", str(each.id))


def _not_committed(stage: Stage, round_: Round, bad: Mood, end: DeliveryState, when: When) -> None:
    hurt = series(stage, round_)
    event = "refuse" if end is DeliveryState.REFUSED else "exhaust"
    with stage.pacs(bad):
        stage.order("listener", f"delivery.{event}.SENT", when)
        stage.modality.send(hurt)
        stage.await_blow("listener")
        _wait(stage, hurt, lambda _, found: any(each.state is end for each in found))
    for each in _deliveries(stage, hurt):
        if each.state is end:
            point = f"delivery.retry.{end.value}"
            _retry(stage, round_, point, when, "--delivery", str(each.id))


def delivery_again(stage: Stage, round_: Round, *, when: When) -> None:
    """What the PACS has already is sent to it once more: the same bytes, no twin."""
    hurt = series(stage, round_)
    stage.modality.send(hurt)
    finished(stage, round_)
    for each in _deliveries(stage, hurt):
        point = f"delivery.retry.{each.state.value}"
        _retry(stage, round_, point, when, "--delivery", str(each.id))


def _retry(stage: Stage, round_: Round, point: str, when: When, *what: str) -> None:
    """``hipscore retry``, killed at the point, then said again if it had not come to pass."""
    orders = stage.orders["operator"]
    stage.order("operator", point, when)
    command = launched(stage.root, "operator", ("retry", *what))
    subprocess.run(command, env=stage.environment, capture_output=True, check=False, timeout=120.0)
    if orders.struck() is None:
        orders.withdraw()
        raise RuntimeError(f"hipscore retry {' '.join(what)} did not come to {point}")
    if when == "before":
        done = subprocess.run(
            command,
            env=stage.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120.0,
        )
        if done.returncode:
            raise RuntimeError(f"hipscore retry {' '.join(what)}: {done.stderr}")
    round_.repairs += 1


Look = Callable[[Sequence[Job], Sequence[Delivery]], bool]


def _all_are(state: DeliveryState) -> Look:
    return lambda _, found: bool(found) and all(each.state is state for each in found)


def _wait(stage: Stage, sent: Scan, look: Look) -> None:
    wait_until(
        lambda: look(_jobs(stage, sent), _deliveries(stage, sent)),
        what="the fault leaves what only an operator can mend",
        seconds=180.0,
        every=0.2,
    )


def _jobs(stage: Stage, sent: Scan) -> Sequence[Job]:
    query = select(Job).join(Series, Series.id == Job.series_id)
    query = query.where(Series.series_instance_uid == sent.series_uid).order_by(Job.id)
    with database.readers(stage.engine)() as session:
        return session.scalars(query).all()


def _deliveries(stage: Stage, sent: Scan) -> Sequence[Delivery]:
    query = select(Delivery).join(ArtifactRow, ArtifactRow.id == Delivery.artifact_id)
    query = query.where(ArtifactRow.job_id.in_([each.id for each in _jobs(stage, sent)]))
    with database.readers(stage.engine)() as session:
        return session.scalars(query.order_by(Delivery.id)).all()


def _first_image(stage: Stage, sent: Scan) -> Path:
    uid = str(sent.images[0].SOPInstanceUID)
    query = select(Instance.spool_key).where(Instance.sop_instance_uid == uid)
    with database.readers(stage.engine)() as session:
        return stage.data / "spool" / session.scalars(query).one()
