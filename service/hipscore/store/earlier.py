"""Earlier results of a patient: our own, and what reports that lie in the PACS say.

Of a report that we made ourselves and still know, our own rows are the truth: a copy in the
PACS does not bring back what was superseded or withdrawn here, under whatever Patient ID.

Two hospitals may give the same Patient ID: what contradicts the patient in question
(:meth:`hipscore.store.studies.Traits.contradict`) is somebody else's.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, Select, exists, select, union, update
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.orm import Session, aliased

from hipscore.domain import ArtifactKind, EarlierScore, StudyIdentity
from hipscore.lifecycle import JobState
from hipscore.reporting import SopReference, uids
from hipscore.reporting.earlier import EarlierReport, from_result, standing
from hipscore.store.studies import Traits, of
from hipscore.store.tables import ArtifactRow, Event, Job, Series, Study
from hipscore.store.tables import EarlierReport as Row

_REPORTS = (ArtifactKind.SR, ArtifactKind.SR_FALLBACK)
_CONTENT = TypeAdapter(EarlierReport)
_PATIENT = TypeAdapter(Traits)
#: line of the ledger of an analysis whose images are not of the patient of their study
IDENTITY_CONFLICT = "identity_conflict"

#: a report and whose it is
Claim: TypeAlias = tuple[EarlierReport, Traits]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Scores of earlier studies, the newest first, and how many studies were somebody else's."""

    scores: tuple[EarlierScore, ...] = ()
    contradicted: int = 0


def keep(report: EarlierReport, *, whose: StudyIdentity, now: datetime, session: Session) -> None:
    """Keep what a report on a patient with a key says.

    The first of a SOP Instance UID stays: a later copy with another content or of another
    patient changes nothing. One that says the same adds what an earlier release left out.
    """
    content: dict[str, Any] = _CONTENT.dump_python(report, mode="json")
    content["patient"] = _patient(whose)
    postgresql = session.get_bind().dialect.name == "postgresql"
    insert = (insert_postgresql if postgresql else insert_sqlite)(Row)
    session.execute(
        insert.values(
            sop_instance_uid=report.sop_instance_uid,
            study_instance_uid=report.study_instance_uid,
            patient_key=whose.patient_key,
            study_date=report.study_date,
            content=content,
            received_at=now,
        ).on_conflict_do_nothing(index_elements=[Row.sop_instance_uid])
    )
    query = select(Row).where(Row.sop_instance_uid == report.sop_instance_uid)
    first = session.scalars(query).one()
    same = first.patient_key == whose.patient_key and _content(first) == report
    if same and "patient" not in first.content:
        session.execute(update(Row).where(Row.id == first.id).values(content=content))
    elif not same or _traits(first).contradict(Traits.of(whose)):
        log.warning("a copy of report %s differs; the first is kept", report.sop_instance_uid)


def known(patient_keys: Collection[str], *, session: Session) -> set[str]:
    """SOP Instance UIDs of the reports on these patients that need not be fetched."""
    kept = select(Row.sop_instance_uid).where(Row.patient_key.in_(patient_keys))
    made_here = session.scalars(_made_here(patient_keys))
    return {*session.scalars(kept), *(uid for uid in made_here if uid)}


def find(
    study_instance_uid: str,
    whose: StudyIdentity,
    patient_keys: Collection[str],
    *,
    session: Session,
) -> Found:
    """Find the scores of earlier studies of the patient.

    Parameters
    ----------
    study_instance_uid
        The study they are earlier than.
    whose
        Its patient, date and time.
    patient_keys
        :attr:`hipscore.domain.StudyIdentity.patient_key`, in each form the patient has.
    session
        A reading session.
    """
    if not whose.study_date or not patient_keys:
        return Found()
    traits, mine, others = Traits.of(whose), [], set()
    for report, patient in claims(patient_keys, until=whose.study_date, session=session):
        if not patient.contradict(traits):
            mine.append(report)
        elif report.study_instance_uid != study_instance_uid:
            others.add(report.study_instance_uid)
    before = (whose.study_date, whose.study_time)
    scores = standing(mine, before=before, other_than=study_instance_uid)
    return Found(scores=scores, contradicted=len(others))


def claims(patient_keys: Collection[str], *, until: str, session: Session) -> list[Claim]:
    """Whatever these keys have of studies until a day, each with whose it says it is."""
    under_keys = Row.patient_key.in_(patient_keys)
    kept = select(Row.sop_instance_uid).where(under_keys)
    made_here = set(
        session.scalars(
            select(ArtifactRow.sop_instance_uid).where(
                ArtifactRow.kind.in_(_REPORTS), ArtifactRow.sop_instance_uid.in_(kept)
            )
        )
    )
    found = _own(patient_keys, until, session=session)
    for row in session.scalars(select(Row).where(under_keys, Row.study_date <= until)):
        content = _content(row)
        if content is not None and row.sop_instance_uid not in made_here:
            found.append((content, _traits(row)))
    return found


def of_somebody_else() -> ColumnElement[bool]:
    """Condition on a job: its images are not of the patient of their study."""
    return exists().where(
        Event.series_id == Job.series_id, Event.job_id == Job.id, Event.what == IDENTITY_CONFLICT
    )


def studies_under(patient_keys: Collection[str]) -> ColumnElement[bool]:
    """Condition on a study: it has one of the keys, or a report on it in the PACS has."""
    return Study.study_instance_uid.in_(
        union(
            select(Study.study_instance_uid).where(Study.patient_key.in_(patient_keys)),
            select(Row.study_instance_uid).where(Row.patient_key.in_(patient_keys)),
        )
    )


def _own(patient_keys: Collection[str], date: str, *, session: Session) -> list[Claim]:
    """Our own results that are not superseded; what was withdrawn is without a score."""
    later = aliased(Job)
    query = (
        select(Job, Study, ArtifactRow)
        .join(Series, Series.id == Job.series_id)
        .join(Study, Study.study_instance_uid == Series.study_instance_uid)
        .join(ArtifactRow, ArtifactRow.job_id == Job.id)
        .where(
            studies_under(patient_keys),
            Study.study_date <= date,
            Study.study_date != "",
            Job.state.in_((JobState.ANALYSED, JobState.NOT_SCORABLE)),
            ~exists().where(later.supersedes_id == Job.id),
            ~of_somebody_else(),
            ArtifactRow.kind == ArtifactKind.SR,
        )
        .order_by(Job.id)
    )
    found: list[Claim] = []
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
        found += [(own, Traits.of(of(study)))] if own is not None else []
    return found


def _made_here(patient_keys: Collection[str]) -> Select[str | None]:
    return (
        select(ArtifactRow.sop_instance_uid)
        .join(Job, Job.id == ArtifactRow.job_id)
        .join(Series, Series.id == Job.series_id)
        .join(Study, Study.study_instance_uid == Series.study_instance_uid)
        .where(Study.patient_key.in_(patient_keys), ArtifactRow.kind.in_(_REPORTS))
    )


def _patient(whose: StudyIdentity) -> dict[str, Any]:
    """What is kept of the patient beside the key: neither name nor Patient ID."""
    traits = Traits.of(whose)
    names = sorted(traits.names)
    return {"birth_date": traits.birth_date, "sex": traits.sex, "names": names}


def _traits(row: Row) -> Traits:
    try:
        return _PATIENT.validate_python(row.content.get("patient", {}))
    except ValidationError:
        return Traits()  # written by another release


def _content(row: Row) -> EarlierReport | None:
    try:
        return _CONTENT.validate_python(row.content)
    except ValidationError:
        return None  # written by another release
