"""Earlier results of a patient: our own, and what reports that lie in the PACS say.

Of a report that we made ourselves and still know, our own rows are the truth: a copy in the
PACS does not bring back what was superseded or withdrawn here.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Select, exists, select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.orm import Session, aliased

from hipscore.domain import ArtifactKind, EarlierScore
from hipscore.lifecycle import JobState
from hipscore.reporting import SopReference, uids
from hipscore.reporting.earlier import EarlierReport, from_result, standing
from hipscore.store.tables import ArtifactRow, Job, Series, Study
from hipscore.store.tables import EarlierReport as Row

_REPORTS = (ArtifactKind.SR, ArtifactKind.SR_FALLBACK)
_CONTENT = TypeAdapter(EarlierReport)


def keep(report: EarlierReport, *, patient_key: str, now: datetime, session: Session) -> None:
    """Keep what a report says. One that is known is written again: its patient may be another."""
    values = {
        "study_instance_uid": report.study_instance_uid,
        "patient_key": patient_key,
        "study_date": report.study_date,
        "content": _CONTENT.dump_python(report, mode="json"),
        "received_at": now,
    }
    postgresql = session.get_bind().dialect.name == "postgresql"
    insert = (insert_postgresql if postgresql else insert_sqlite)(Row)
    session.execute(
        insert.values(sop_instance_uid=report.sop_instance_uid, **values).on_conflict_do_update(
            index_elements=[Row.sop_instance_uid], set_=values
        )
    )


def known(patient_keys: Collection[str], *, session: Session) -> set[str]:
    """SOP Instance UIDs of the reports on these patients that need not be fetched."""
    kept = select(Row.sop_instance_uid).where(Row.patient_key.in_(patient_keys))
    made_here = session.scalars(_made_here(patient_keys))
    return {*session.scalars(kept), *(uid for uid in made_here if uid)}


def scores(
    study_instance_uid: str,
    patient_keys: Collection[str],
    *,
    before: tuple[str, str],
    session: Session,
) -> tuple[EarlierScore, ...]:
    """Return the scores of earlier studies of the patient, the newest first.

    Parameters
    ----------
    study_instance_uid
        The study they are earlier than.
    patient_keys
        :attr:`hipscore.domain.StudyIdentity.patient_key`, in each form the patient has.
    before
        Its date and time, as in :class:`hipscore.domain.StudyIdentity`.
    """
    if not before[0] or not patient_keys:
        return ()
    made_here = set(session.scalars(_made_here(patient_keys)))
    rows = session.scalars(
        select(Row).where(Row.patient_key.in_(patient_keys), Row.study_date <= before[0])
    )
    reports = [each for row in rows if (each := _content(row)) is not None]
    return standing(
        [
            *_own(patient_keys, before[0], session=session),
            *(each for each in reports if each.sop_instance_uid not in made_here),
        ],
        before=before,
        other_than=study_instance_uid,
    )


def _own(patient_keys: Collection[str], date: str, *, session: Session) -> list[EarlierReport]:
    """Our own results that are not superseded; what was withdrawn is without a score."""
    later = aliased(Job)
    query = (
        select(Job, Study, ArtifactRow)
        .join(Series, Series.id == Job.series_id)
        .join(Study, Study.study_instance_uid == Series.study_instance_uid)
        .join(ArtifactRow, ArtifactRow.job_id == Job.id)
        .where(
            Study.patient_key.in_(patient_keys),
            Study.study_date <= date,
            Study.study_date != "",
            Job.state.in_((JobState.ANALYSED, JobState.NOT_SCORABLE)),
            ~exists().where(later.supersedes_id == Job.id),
            ArtifactRow.kind == ArtifactKind.SR,
        )
        .order_by(Job.id)
    )
    found = []
    for job, study, document in session.execute(query):
        reference = SopReference(
            sop_class_uid=document.sop_class_uid or "",
            sop_instance_uid=document.sop_instance_uid or "",
            series_instance_uid=uids.derive(job.key, "sr", "series"),  # as reporting does
            study_instance_uid=study.study_instance_uid,
        )
        result = {**(job.result or {}), **({"unet_score": None} if job.withdrawn_at else {})}
        own = from_result(
            result,
            reference,
            study_date=study.study_date,
            study_time=study.study_time,
        )
        found += [own] if own is not None else []
    return found


def _made_here(patient_keys: Collection[str]) -> Select[str | None]:
    return (
        select(ArtifactRow.sop_instance_uid)
        .join(Job, Job.id == ArtifactRow.job_id)
        .join(Series, Series.id == Job.series_id)
        .join(Study, Study.study_instance_uid == Series.study_instance_uid)
        .where(Study.patient_key.in_(patient_keys), ArtifactRow.kind.in_(_REPORTS))
    )


def _content(row: Row) -> EarlierReport | None:
    try:
        return _CONTENT.validate_python(row.content)
    except ValidationError:
        return None  # written by another release
