"""Earlier reports read back: what one of our own SRs says, and which of several counts.

Only what :mod:`hipscore.reporting.sr` writes is understood (TID 1500 with the codes of
99HIPSCORE). Whatever else a PACS returns, however damaged, is no earlier report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, TypeAlias

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, SegmentationStorage

from hipscore.attributes import first_item, items, numbers, text
from hipscore.domain import EarlierHip, EarlierScore, Side
from hipscore.header import is_uid
from hipscore.identity import identity
from hipscore.reporting import SopReference, codes, source

SOP_CLASSES = frozenset({str(Comprehensive3DSRStorage), str(ComprehensiveSRStorage)})

#: where an :class:`EarlierScore` comes from
DATABASE, PACS = "database", "pacs"

_GROUP = ("125007", "DCM")
_FINDING_SITE = ("363698007", "SCT")
_LATERALITY = ("272741003", "SCT")
_ALGORITHM_VERSION = ("111003", "DCM")
#: our reports have a patient's group, two of hips and six of segments
_MOST_GROUPS = 64
#: a score beyond this is no score: it sums ratios of slices
_LARGEST = 1e6

_Named: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierReport:
    """One report of ours, with what decides whether it still counts.

    Parameters
    ----------
    sop_instance_uid, study_instance_uid
        The report's own.
    series_instance_uid
        The series that was scored; empty if the report does not say.
    study_date, study_time
        ``YYYYMMDD``; ``HHMMSS.FFFFFF``, shortened from the right, or empty.
    created_at
        When the report was written. One that does not name its time zone is taken as UTC.
    predecessors
        SOP Instance UIDs of the reports that this one replaces.
    score
        What it says; None where nothing could be scored.
    """

    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    study_date: str
    study_time: str
    created_at: datetime
    predecessors: tuple[str, ...]
    score: EarlierScore | None


def read_report(dataset: Dataset) -> EarlierScore | None:
    """Read the score of a report; None if it has none, or is no report of ours. Never an error."""
    found = read_document(dataset)
    return None if found is None else found.score


def read_document(dataset: Dataset) -> EarlierReport | None:
    """Read a report, scored or not; None if it is no complete report of ours. Never an error.

    A report is ours if it is an Imaging Measurement Report (TID 1500) of this manufacturer
    with a measurement group for the patient whose method and intended use are those of
    99HIPSCORE. It has to name its study, and the day of that.
    """
    try:
        return _document(dataset)
    except Exception:  # noqa: BLE001 - what anybody wrote may make the parser fail anywhere
        return None


def standing(
    reports: Iterable[EarlierReport], *, before: tuple[str, str], other_than: str
) -> tuple[EarlierScore, ...]:
    """Choose the scores that count of reports on earlier studies, the newest study first.

    Of one series the newest report speaks, and none that another one replaces; where that
    has no score, the series has none.

    Parameters
    ----------
    reports
        All that is known of the patient, in any order.
    before
        Date and time of the study in question. A study of the same day counts if both times
        are known and its own is earlier. Without a date there is nothing earlier.
    other_than
        Study Instance UID of the study in question.
    """
    unique = {each.sop_instance_uid: each for each in reports}
    replaced = {uid for each in unique.values() for uid in each.predecessors}
    speaking: dict[tuple[str, str], EarlierReport] = {}
    for each in sorted(unique.values(), key=lambda one: (one.created_at, one.sop_instance_uid)):
        if each.sop_instance_uid not in replaced:
            speaking[each.study_instance_uid, each.series_instance_uid] = each
    earlier = [
        each
        for each in speaking.values()
        if each.study_instance_uid != other_than and _is_before(each, before)
    ]
    earlier.sort(key=_moment, reverse=True)
    return tuple(each.score for each in earlier if each.score is not None)


def from_result(
    result: Mapping[str, Any], report: SopReference, *, study_date: str, study_time: str
) -> EarlierReport | None:
    """Read a stored result (``result.schema.json``) as the report that was made of it.

    None where it was written by a release whose result says too little.
    """
    try:
        model, score = result["model"], result["unet_score"]
        hips = {
            Side(hip["side"]): EarlierHip(
                unet_score=hip["unet_score"],
                slices_used=hip["slices_used"],
                mean_ratio=hip.get("mean_ratio"),
                whole_volume_index=hip.get("whole_volume_index"),
            )
            for hip in result["hips"]
            if hip["unet_score"] is not None
        }
        return EarlierReport(
            sop_instance_uid=report.sop_instance_uid,
            study_instance_uid=report.study_instance_uid,
            series_instance_uid=result["series_instance_uid"],
            study_date=study_date,
            study_time=study_time,
            created_at=datetime.fromisoformat(result["created_at"]),
            predecessors=tuple(filter(None, [result.get("supersedes")])),
            score=None
            if score is None
            else EarlierScore(
                study_instance_uid=report.study_instance_uid,
                sr_instance_uid=report.sop_instance_uid,
                study_date=study_date,
                unet_score=score,
                hips=hips,
                model=f"{model['id']} {model['version']}",  # as hipscore.change names it
                source=DATABASE,
                sr_class_uid=report.sop_class_uid,
                sr_series_uid=report.series_instance_uid,
            ),
        )
    except (KeyError, TypeError, ValueError):
        return None


# --- the document --------------------------------------------------------------------------


def _document(dataset: Dataset) -> EarlierReport | None:
    study, report = _uid(dataset, "StudyInstanceUID"), _uid(dataset, "SOPInstanceUID")
    whose = identity(dataset)
    if not (_is_ours(dataset) and study and report and whose.study_date):
        return None
    groups = _groups(dataset)
    patient = next((each for each in groups if _speaks_for_the_patient(each)), None)
    if patient is None:
        return None
    score = _number(patient, codes.UNET_SCORE) if _scored(patient) else None
    if _scored(patient) and score is None:
        return None
    return EarlierReport(
        sop_instance_uid=report,
        study_instance_uid=study,
        series_instance_uid=_scored_series(dataset),
        study_date=whose.study_date,
        study_time=whose.study_time,
        created_at=_created(dataset),
        predecessors=tuple(_predecessors(dataset)),
        score=None
        if score is None
        else EarlierScore(
            study_instance_uid=study,
            sr_instance_uid=report,
            study_date=whose.study_date,
            unet_score=score,
            hips=_hips(groups),
            model=_said(patient, _ALGORITHM_VERSION)[:160],
            source=PACS,
            sr_class_uid=text(dataset, "SOPClassUID"),
            sr_series_uid=_uid(dataset, "SeriesInstanceUID"),
        ),
    )


def _is_ours(dataset: Dataset) -> bool:
    return (
        text(dataset, "SOPClassUID") in SOP_CLASSES
        and text(dataset, "Manufacturer") == source.MANUFACTURER
        and text(dataset, "CompletionFlag") == "COMPLETE"
        and _name(dataset) == _key(codes.MEASUREMENT_REPORT)
        and any(
            text(each, "CodingSchemeDesignator") == codes.SCHEME
            for each in items(dataset, "CodingSchemeIdentificationSequence")
        )
    )


def _groups(dataset: Dataset) -> list[Dataset]:
    """Measurement groups, two levels below the root (TID 1500 rows 6 to 9)."""
    return [
        group
        for part in items(dataset, "ContentSequence")
        if _name(part) == _key(codes.IMAGING_MEASUREMENTS)
        for group in items(part, "ContentSequence")
        if _name(group) == _GROUP
    ][:_MOST_GROUPS]


def _speaks_for_the_patient(group: Dataset) -> bool:
    return _code(group, codes.INTENDED_USE) == _key(codes.RESEARCH)


def _scored(group: Dataset) -> bool:
    return _code(group, codes.STATUS) == _key(codes.SCORED)


def _hips(groups: Iterable[Dataset]) -> dict[Side, EarlierHip]:
    found: dict[Side, EarlierHip] = {}
    for group in groups:
        side, score = _side(group), _number(group, codes.UNET_SCORE)
        slices = _number(group, codes.SLICES_USED)
        if _speaks_for_the_patient(group) or not _scored(group) or side is None:
            continue
        if score is not None and slices is not None and slices.is_integer() and slices > 0:
            found[side] = EarlierHip(
                unet_score=score,
                slices_used=int(slices),
                mean_ratio=_number(group, codes.MEAN_RATIO),
                whole_volume_index=_number(group, codes.VOLUME_INDEX),
            )
    return found


def _side(group: Dataset) -> Side | None:
    """Laterality of the finding site (TID 1501 row 6)."""
    for site in _named(group, _FINDING_SITE):
        for modifier in _named(site, _LATERALITY):
            code = _coded(first_item(modifier, "ConceptCodeSequence"))
            for side, laterality in codes.LATERALITY.items():
                if code == _key(laterality):
                    return side
    return None


def _scored_series(dataset: Dataset) -> str:
    """The series of the source images: in the evidence, what is not made of them."""
    for study in items(dataset, "CurrentRequestedProcedureEvidenceSequence"):
        for series in items(study, "ReferencedSeriesSequence"):
            uid = _uid(series, "SeriesInstanceUID")
            kinds = {
                text(each, "ReferencedSOPClassUID")
                for each in items(series, "ReferencedSOPSequence")
            }
            if kinds and uid and not kinds & {str(SegmentationStorage), *SOP_CLASSES}:
                return uid
    return ""


def _predecessors(dataset: Dataset) -> Iterable[str]:
    for study in items(dataset, "PredecessorDocumentsSequence"):
        for series in items(study, "ReferencedSeriesSequence"):
            for each in items(series, "ReferencedSOPSequence"):
                if uid := _uid(each, "ReferencedSOPInstanceUID"):
                    yield uid


def _created(dataset: Dataset) -> datetime:
    """Content Date and Time (PS3.3 C.17.2), in the zone of (0008,0201)."""
    moment = text(dataset, "ContentDate") + text(dataset, "ContentTime").partition(".")[0]
    offset = text(dataset, "TimezoneOffsetFromUTC")
    try:
        written = datetime.strptime(moment[:14].ljust(14, "0"), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    try:
        zone = timezone(timedelta(hours=int(offset[:3]), minutes=int(offset[0] + offset[3:5])))
        return written.replace(tzinfo=zone).astimezone(UTC)
    except (ValueError, IndexError, OverflowError):
        return written


def _uid(dataset: Dataset, keyword: str) -> str:
    """A UID; empty where there is none."""
    uid = text(dataset, keyword)
    return uid if is_uid(uid) else ""


# --- content items -------------------------------------------------------------------------


def _key(code: Code) -> _Named:
    return str(code.value), str(code.scheme_designator)


def _coded(item: Dataset) -> _Named:
    return text(item, "CodeValue"), text(item, "CodingSchemeDesignator")


def _name(item: Dataset) -> _Named:
    return _coded(first_item(item, "ConceptNameCodeSequence"))


def _named(item: Dataset, name: _Named) -> Iterable[Dataset]:
    return (each for each in items(item, "ContentSequence") if _name(each) == name)


def _code(group: Dataset, name: Code) -> _Named | None:
    for item in _named(group, _key(name)):
        return _coded(first_item(item, "ConceptCodeSequence"))
    return None


def _said(group: Dataset, name: _Named) -> str:
    said = next((text(item, "TextValue") for item in _named(group, name)), "")
    return "".join(each for each in said if each.isprintable())


def _number(group: Dataset, name: Code) -> float | None:
    """The value of a measurement: finite, not negative; None where there is none."""
    for item in _named(group, _key(name)):
        values = numbers(first_item(item, "MeasuredValueSequence"), "NumericValue")
        if len(values) == 1 and math.isfinite(values[0]) and 0 <= values[0] <= _LARGEST:
            return values[0]
    return None


# --- time ----------------------------------------------------------------------------------


def _moment(report: EarlierReport) -> tuple[str, str, datetime, str]:
    return (
        report.study_date,
        _clock(report.study_time),
        report.created_at,
        report.sop_instance_uid,
    )


def _is_before(report: EarlierReport, before: tuple[str, str]) -> bool:
    day, time = before
    if not (_is_day(day) and _is_day(report.study_date)):
        return False
    if report.study_date != day:
        return report.study_date < day
    own = _clock(report.study_time)
    return bool(own and time) and own < _clock(time)


def _is_day(day: str) -> bool:
    try:
        date.fromisoformat(day)
    except ValueError:
        return False
    return True


def _clock(time: str) -> str:
    """A time that sorts: ``HHMMSSFFFFFF``, or empty."""
    return time.replace(".", "").ljust(12, "0") if time else ""
