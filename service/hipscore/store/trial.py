"""Taking away what a trial left: its files, and its line in the worklist. The ledger stays."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from hipscore.store import ledger
from hipscore.store.tables import ArtifactRow, Instance, Job, Series, Study, WorkItem


def remove(study_instance_uid: str, *, now: datetime, session: Session) -> list[str]:
    """Forget a synthetic study, as far as an append-only ledger allows.

    Its images and results are marked as purged, its work items and its line in the worklist
    deleted. Series and jobs stay, with a line ``trial_removed`` each: the ledger names them.

    Returns
    -------
    list of str
        Spool keys of the files to delete after the commit.
    """
    members = session.scalars(
        select(Series.id).where(Series.study_instance_uid == study_instance_uid)
    ).all()
    analyses = session.scalars(select(Job.id).where(Job.series_id.in_(members))).all()
    session.execute(delete(WorkItem).where(WorkItem.job_id.in_(analyses)))
    session.execute(delete(Study).where(Study.study_instance_uid == study_instance_uid))
    images = (
        update(Instance)
        .where(Instance.series_id.in_(members), Instance.purged_at.is_(None))
        .values(purged_at=now)
        .returning(Instance.spool_key)
    )
    results = (
        update(ArtifactRow)
        .where(ArtifactRow.job_id.in_(analyses), ArtifactRow.purged_at.is_(None))
        .values(purged_at=now)
        .returning(ArtifactRow.spool_key)
    )
    unsynchronised = {"synchronize_session": False}
    keys = [
        *session.scalars(images, execution_options=unsynchronised),
        *session.scalars(results, execution_options=unsynchronised),
    ]
    for series_id in members:
        subject = ledger.Subject(series_id=series_id)
        ledger.append(
            subject, "trial_removed", detail={"files": len(keys)}, now=now, session=session
        )
    return keys
