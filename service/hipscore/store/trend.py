"""All scored studies of one patient over time, from our results and earlier reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hipscore.domain import EarlierScore, StudyIdentity
from hipscore.reporting.earlier import standing
from hipscore.store import earlier
from hipscore.store.studies import Traits, of
from hipscore.store.tables import Job, Study

#: more studies of one patient are not read
LONGEST = 200
#: later than any study
_ANY_DAY = ("99991231", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class HipThen:
    """One hip of one result."""

    unet_score: float
    slices_used: int
    mean_ratio: float | None
    whole_volume_index: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One scored study. ``ours``: it lies in this database, otherwise in a report of the PACS.

    ``study_date`` is ``YYYYMMDD``; hips that were not scored are absent from ``hips``.
    """

    study_instance_uid: str
    study_date: str
    study_time: str
    accession_number: str
    unet_score: float
    hips: Mapping[str, HipThen]
    model: str
    ours: bool

    @property
    def slices_used(self) -> dict[str, int]:
        """Slices summed, by side."""
        return {side: hip.slices_used for side, hip in sorted(self.hips.items())}


def of_patient(
    patient_key: str, *, whose: StudyIdentity | None = None, session: Session
) -> list[Result]:
    """The scored studies of the patient, oldest first.

    Parameters
    ----------
    patient_key
        See :attr:`hipscore.domain.StudyIdentity.patient_key`.
    whose
        The patient in question: what contradicts that is somebody else's, and left out.
        Without it, a key that two people have has no trend at all.
    session
        A reading session.
    """
    rows = session.execute(
        select(Study, Job)
        .join(Job, Job.id == Study.job_id)
        .where(
            earlier.studies_under((patient_key,)),
            Study.score.is_not(None),
            ~earlier.of_somebody_else(),
        )
        .order_by(Study.study_date.desc(), Study.id.desc())
        .limit(LONGEST)
    ).all()
    own = [(study, job, Traits.of(of(study))) for study, job in rows]
    claims = earlier.claims((patient_key,), until=_ANY_DAY[0], session=session)
    people = {each[2] for each in own} | {patient for _, patient in claims}
    if whose is not None:
        people = {each for each in people if not each.contradict(Traits.of(whose))}
    elif any(one.contradict(other) for one, other in combinations(people, 2)):
        return []
    found = [of_study(study, job) for study, job, patient in own if patient in people]
    mine = [report for report, patient in claims if patient in people]
    reports = standing(mine, before=_ANY_DAY, other_than="")[:LONGEST]
    # a study that is known here speaks for itself: it may have been withdrawn
    uids = [report.study_instance_uid for report in reports]
    here = select(Study.study_instance_uid).where(Study.study_instance_uid.in_(uids))
    known = set(session.scalars(here))
    for report in reports:
        if report.study_instance_uid not in known:
            known.add(report.study_instance_uid)  # of several series, the newest report
            found.append(_reported(report))
    return sorted(found, key=lambda each: (each.study_date, each.study_time))


def of_study(study: Study, job: Job) -> Result:
    """What the job that speaks for the study found."""
    result: dict[str, Any] = job.result or {}
    return Result(
        study_instance_uid=study.study_instance_uid,
        study_date=study.study_date,
        study_time=study.study_time,
        accession_number=study.accession_number,
        unet_score=float(study.score or 0.0),
        hips={
            hip["side"]: _hip(hip)
            for hip in result.get("hips", [])
            if hip.get("unet_score") is not None
        },
        model=f"{job.bundle_id} {job.bundle_version}",
        ours=True,
    )


def _reported(report: EarlierScore) -> Result:
    return Result(
        study_instance_uid=report.study_instance_uid,
        study_date=report.study_date,
        study_time="",
        accession_number="",
        unet_score=report.unet_score,
        hips={
            side.value: HipThen(
                unet_score=hip.unet_score,
                slices_used=hip.slices_used,
                mean_ratio=hip.mean_ratio,
                whole_volume_index=hip.whole_volume_index,
            )
            for side, hip in report.hips.items()
        },
        model=report.model,
        ours=False,
    )


def _hip(hip: Mapping[str, Any]) -> HipThen:
    return HipThen(
        unet_score=float(hip["unet_score"]),
        slices_used=int(hip["slices_used"]),
        mean_ratio=hip.get("mean_ratio"),
        whole_volume_index=hip.get("whole_volume_index"),
    )


def of_one(study: Study, *, session: Session) -> Result | None:
    """The result of a study whose patient has no ID; None without a score."""
    job = None if study.job_id is None else session.get(Job, study.job_id)
    return None if job is None or study.score is None else of_study(study, job)
