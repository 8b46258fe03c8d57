"""Findings as objects other systems read: DICOM SEG, SR, secondary captures, PDF; PNG, JSON.

Every builder is a pure function of its arguments. The same arguments give the same
bytes, so that a result that is built again after a crash is the same object and not
its twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hipscore.change import Assessment, assess
from hipscore.domain import EarlierScore, Engine, Findings, ModelCard, StudyIdentity

__all__ = ["ReportContext", "SopReference", "assessed"]


UNKNOWN = StudyIdentity()


@dataclass(frozen=True, slots=True, kw_only=True)
class SopReference:
    """Where one SOP instance belongs (PS3.3 table 10-11, with its series and study)."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContext:
    """What a report needs to know beyond the images and the findings.

    Parameters
    ----------
    job_key
        Identity of the analysis: one series, one set of instances, one model. All
        output UIDs are derived from it.
    created_at
        When the analysis was made; timezone aware. Written in the time zone the
        source images declare (0008,0201), otherwise in its own.
    software_version
        Version of hipscore.
    predecessor
        The SR that this one supersedes, if there is one.
    device_serial
        Serial number of this installation, for the device observer (TID 1004).
    device_name
        Name of this installation, for example its AE title.
    institution_name
        Where it runs; left out when empty.
    identity
        Whose study it is, with the order where that had to be looked up; fills what the
        images leave empty (accession number, requested procedure, referring physician).
    earlier
        Earlier results of the patient, newest first.
    priority_score, priority_rise
        Limits of the priority flag; None: not flagged for that.
    engine
        What computed the networks: a parameter of the algorithm (TID 4019) in the report.

    Raises
    ------
    ValueError
        If ``job_key`` is empty or ``created_at`` has no time zone.
    """

    job_key: str
    created_at: datetime
    software_version: str
    predecessor: SopReference | None = None
    device_serial: str = "1"
    device_name: str = "HIPSCORE"
    institution_name: str = ""
    identity: StudyIdentity = UNKNOWN
    earlier: tuple[EarlierScore, ...] = ()
    priority_score: float | None = None
    priority_rise: float | None = None
    engine: Engine | None = None

    def __post_init__(self) -> None:
        if not self.job_key:
            msg = "job_key is empty; output UIDs are derived from it"
            raise ValueError(msg)
        if self.created_at.utcoffset() is None:
            msg = f"created_at {self.created_at.isoformat()} has no time zone; pass an aware time"
            raise ValueError(msg)


def assessed(findings: Findings, card: ModelCard, context: ReportContext) -> Assessment:
    """The findings beside the newest earlier score and the limits of the context."""
    return assess(
        findings,
        context.earlier,
        card,
        priority_score=context.priority_score,
        priority_rise=context.priority_rise,
    )
