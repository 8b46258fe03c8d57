"""Binding a claimed job to the bundle of the worker that holds it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hipscore.lifecycle import IllegalMove, JobState, job_key
from hipscore.store import audit, ledger
from hipscore.store.moves import LeaseLost, load
from hipscore.store.tables import Job, Series


def rebind(
    job_id: int,
    *,
    lease: str,
    bundle_id: str,
    bundle_version: str,
    bundle_sha256: str,
    now: datetime,
    session: Session,
) -> Job:
    """Give a job that has no result yet to another bundle, as often as bundles change.

    The images stay; the key, and with it the UIDs of what will be made, follow the bundle.
    Nothing was made under the old key: only a finished job has artifacts.

    Raises
    ------
    hipscore.store.moves.LeaseLost
        If the lease is not in force; nothing is changed.
    hipscore.lifecycle.IllegalMove
        If another job has these images and this bundle already.
    """
    job = load(Job, job_id, session=session)
    before = f"{job.bundle_id} {job.bundle_version}"
    series = session.get_one(Series, job.series_id)
    key = job_key(
        series_instance_uid=series.series_instance_uid,
        instances_digest=job.instances_digest,
        bundle_id=bundle_id,
        bundle_sha256=bundle_sha256,
        generation=audit.deletions(series.study_instance_uid, session=session),
    )
    twin = session.scalars(select(Job.id).where(Job.key == key, Job.id != job_id)).one_or_none()
    if twin is not None:
        msg = f"job {twin} has these images and bundle {bundle_id} {bundle_version} already"
        raise IllegalMove(msg)
    swap = (
        update(Job)
        .where(Job.id == job_id, Job.state == JobState.ANALYSING, Job.lease == lease)
        .values(
            key=key,
            bundle_id=bundle_id,
            bundle_version=bundle_version,
            bundle_sha256=bundle_sha256,
        )
        .returning(Job.id)
    )
    done = session.execute(swap, execution_options={"synchronize_session": False})
    if done.scalar_one_or_none() is None:
        msg = f"the lease on job {job_id} is no longer in force"
        raise LeaseLost(msg)
    session.refresh(job)
    ledger.append(
        ledger.Subject(series_id=job.series_id, job_id=job_id),
        "rebind",
        detail={"from": before, "to": f"{bundle_id} {bundle_version}"},
        now=now,
        session=session,
    )
    return job
