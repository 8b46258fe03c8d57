"""Findings as an HL7 v2.5.1 message: ORU^R01, unsolicited result (HL7 v2.5.1 7.3.1).

One order, one observation for each number. Series of one study share the placer's number, the
accession number; the filler's number and OBX-4 are the series' own, and those of all its
results: a correction, or a retraction, meets what it is about and nothing else. Whose study it
is comes from the tidy header that the DICOM reports have too, so that message and report
agree. Codes are those of the report; a hip's have its side as a suffix (``UNET_SCORE-R``),
because many receivers keep one value for each code of OBX-3 and do not look at its sub-ID.
MSH-11 is ``P``: it says how the message is to be processed, not what it is good for, and
interfaces drop or divert ``T`` and ``D``. That the result is for research is said in notes and
in the name of the service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import hl7
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage

from hipscore.domain import RESEARCH_USE, Findings, HipFindings, ModelCard, Remark, Side
from hipscore.header import is_uid
from hipscore.identity import identity
from hipscore.reporting import ReportContext, SopReference, assessed, codes, comparison
from hipscore.reporting.header import headers, silently
from hipscore.reporting.hl7v2 import (
    Components,
    Field,
    coded,
    derived,
    moment,
    names,
    segment,
    time_of,
)

MEDIA_TYPE = "application/hl7-v2"
#: OBR-4
SERVICE = codes.private("HIP_SCORE", "Hip inflammation score of STIR MRI, research use")
SR_INSTANCE = codes.private("SR_INSTANCE_UID", "SOP Instance UID of the structured report")
EARLIER_DATE = codes.private("EARLIER_DATE", "Study date of the earlier study")
STUDY_INSTANCE = Code("110180", "DCM", "Study Instance UID")
SERIES_INSTANCE = Code("112002", "DCM", "Series Instance UID")

_FINAL, _CORRECTED, _NONE = "F", "C", "X"  # HL7 tables 0085 and 0123
_ABNORMAL = "A"  # HL7 table 0078
_COUNTS = "Scores over different numbers of slices do not compare"
_REPORTS = (str(Comprehensive3DSRStorage), str(ComprehensiveSRStorage))
#: of a hip that was scored, with their units
_NUMBERS = (
    (codes.UNET_SCORE, codes.NO_UNITS),
    (codes.BME_SCORE, codes.NO_UNITS),
    (codes.SYNOVITIS_SCORE, codes.NO_UNITS),
    (codes.SLICES_USED, codes.SLICES),
    (codes.MEAN_RATIO, codes.RATIO),
    (codes.VOLUME_INDEX, codes.RATIO),
)


@silently()
def build_oru(
    images: Sequence[Dataset],
    findings: Findings,
    card: ModelCard,
    context: ReportContext,
    references: Sequence[SopReference] = (),
) -> bytes:
    """Build the message of one series, scored or not.

    MSH-10 is derived from the analysis: the same message has it on every try, and a
    receiver can tell that it comes again. MSH-5 and MSH-6 are left to who sends it.

    Parameters
    ----------
    images
        Source images; pixel data is not read.
    findings
        What is reported. Without a score, the observations that cannot be given have the
        status X, and the reason is one of its own.
    card
        The model.
    context
        Identity, time, predecessor (the result is a correction then), earlier scores and
        limits of the priority flag.
    references
        DICOM objects with the same result; the first structured report is named.

    Returns
    -------
    bytes
        UTF-8, segments ended by carriage returns. The same arguments give the same bytes.

    Raises
    ------
    ValueError
        If there is no image.
    """
    observations = [
        *_of_patient(findings, card, context),
        *(each for hip in findings.hips for each in _of_hip(hip, findings, card, context)),
        *(
            _Observation(SR_INSTANCE, text=each.sop_instance_uid)
            for each in [each for each in references if each.sop_class_uid in _REPORTS][:1]
        ),
    ]
    notes = [RESEARCH_USE, _COUNTS, *(each.text for each in findings.quality)]
    return _message(headers(images, context)[0], notes, observations, context)


@silently()
def build_bare(whose: Dataset, sides: Iterable[Side], context: ReportContext) -> bytes:
    """Build the message of a result that is not here any more, with none of its numbers.

    It is what a retraction (:mod:`hipscore.reporting.retraction`) is made from then.

    Parameters
    ----------
    whose
        A header of the study, with the Series Instance UID of the source.
    sides
        The hips of which there was a result.
    context
        As for :func:`build_oru`.
    """
    observations = [
        _Observation(codes.UNET_SCORE, unit=codes.NO_UNITS, missing=True),
        *(
            _Observation(concept, side=side, unit=unit, missing=True)
            for side in sides
            for concept, unit in _NUMBERS
        ),
    ]
    return _message(headers([whose], context)[0], [RESEARCH_USE], observations, context)


def _message(
    header: Dataset,
    notes: Iterable[str],
    observations: Iterable[_Observation],
    context: ReportContext,
) -> bytes:
    message = hl7.parse("MSH|^~\\&|\r")
    del message[0]
    filler = filler_number(str(header.SeriesInstanceUID))
    segments = [
        _msh(derived("oru", context.job_key), context),
        _pid(header, context),
        *_order(header, filler, context),
        *_notes(notes),
        *_observations(header, filler, observations, context),
    ]
    for name, fields in segments:
        message.append(segment(message, name, fields))
    return str(message).encode("utf-8")


def filler_number(series_instance_uid: str) -> str:
    """Number of a series in ORC-3, OBR-3 and OBX-4: these take 22 and 20 characters."""
    return derived("oru series", series_instance_uid)


def _msh(control_id: str, context: ReportContext) -> tuple[str, list[Field]]:
    return "MSH", [
        context.device_name,
        context.institution_name,
        "",
        "",
        moment(context.created_at),
        "",
        [["ORU", "R01", "ORU_R01"]],
        control_id,
        "P",
        "2.5.1",
        *[""] * 5,
        "UNICODE UTF-8",  # HL7 table 0211
    ]


def _pid(header: Dataset, context: ReportContext) -> tuple[str, list[Field]]:
    known = identity(header)
    issuer = known.issuer_of_patient_id
    authority = ("", issuer, "ISO") if "." in issuer and is_uid(issuer) else (issuer,)
    if known.patient_id:
        identifier: Components = [known.patient_id, "", "", authority, "PI"]
    else:
        # PID-3 is required. Nobody else has this one, so that nothing is mixed up.
        identifier = [str(header.StudyInstanceUID), "", "", context.device_name, "U"]
    return "PID", [
        "1",
        "",
        [identifier],
        "",
        names(known.patient_name) or [["", "", "", "", "", "", "U"]],
        "",
        known.birth_date,
        known.sex or "U",
    ]


def _order(
    header: Dataset, number: str, context: ReportContext
) -> Iterator[tuple[str, list[Field]]]:
    """ORC and OBR: the accession number is the placer's (OBR-18 as IHE RAD has it)."""
    known = identity(header)
    accession = known.accession_number
    placer: Field = accession
    filler: Field = [[number, context.device_name]]
    created = moment(context.created_at)
    provider = names(known.referring_physician, leading=1, trailing=4)
    yield "ORC", ["RE", placer, filler, "", "CM", "", "", "", created, "", "", provider]
    yield (
        "OBR",
        [
            "1",
            placer,
            filler,
            coded(SERVICE),
            "",
            "",
            time_of(known.study_date, known.study_time),
            *[""] * 8,
            provider,
            "",
            accession,
            known.requested_procedure_id,
            "",
            "",
            created,
            "",
            "RAD",  # HL7 table 0074
            _status(context),
        ],
    )


def _observations(
    header: Dataset,
    sub_id: str,
    observations: Iterable[_Observation],
    context: ReportContext,
) -> Iterator[tuple[str, list[Field]]]:
    """OBX, numbered, each with its notes; the study and the series are the last."""
    where = (
        _Observation(STUDY_INSTANCE, text=str(header.StudyInstanceUID)),
        _Observation(SERIES_INSTANCE, text=str(header.SeriesInstanceUID)),
    )
    known = identity(header)
    taken = time_of(known.study_date, known.study_time)
    for number, each in enumerate((*observations, *where), start=1):
        kind, value = each.value()
        yield (
            "OBX",
            [
                str(number),
                kind,
                coded(each.concept, each.side),
                sub_id,
                value,
                coded(each.unit) if each.unit is not None else "",
                "",
                _ABNORMAL if each.flagged else "",
                "",
                "",
                _NONE if each.missing else _status(context),
                "",
                "",
                taken,
                "",
                "",
                coded(codes.METHOD) if each.number is not None else "",
                "",
                moment(context.created_at),
            ],
        )
        yield from _notes(each.notes)


@dataclass(frozen=True, slots=True)
class _Observation:
    """One OBX: a number, a code or a text; ``missing`` where it could not be obtained."""

    concept: Code
    _: KW_ONLY
    side: Side | None = None
    number: float | None = None
    unit: Code | None = None
    code: Code | None = None
    text: str = ""
    kind: str = "ST"
    flagged: bool = False
    missing: bool = False
    notes: Sequence[str] = ()

    def value(self) -> tuple[str, Field]:
        """OBX-2 and OBX-5."""
        if self.code is not None:
            return "CWE", coded(self.code)
        if self.number is not None:
            exact = isinstance(self.number, int)
            return "NM", str(self.number) if exact else f"{self.number:.4f}"
        return ("NM", "") if self.missing else (self.kind, self.text)


def _of_patient(
    findings: Findings, card: ModelCard, context: ReportContext
) -> Iterator[_Observation]:
    assessment = assessed(findings, card, context)
    if findings.unet_score is None:
        yield _Observation(codes.UNET_SCORE, unit=codes.NO_UNITS, missing=True)
    else:
        yield _Observation(
            codes.UNET_SCORE,
            number=findings.unet_score,
            unit=codes.NO_UNITS,
            flagged=assessment.priority.flag,
            notes=comparison.comments(assessment),
        )
    if findings.reason is not None:
        yield _reason(findings.reason, None)
    scored = sum(hip.scored for hip in findings.hips)
    yield _Observation(codes.HIPS_SCORED, number=scored, unit=codes.HIPS)
    if assessment.change is not None:
        date = assessment.change.earlier.study_date
        if date:
            yield _Observation(EARLIER_DATE, text=date, kind="DT")
        yield _comparable(assessment.change.comparable)
    yield from _compared(comparison.of_patient(assessment.change), None)


def _of_hip(
    hip: HipFindings, findings: Findings, card: ModelCard, context: ReportContext
) -> Iterator[_Observation]:
    side = hip.hip.side
    if not hip.scored:
        yield _Observation(codes.UNET_SCORE, side=side, unit=codes.NO_UNITS, missing=True)
        if hip.reason is not None:
            yield _reason(hip.reason, side)
        return
    numbers = (
        hip.unet_score,
        hip.bme_score,
        hip.synovitis_score,
        len(hip.slices),
        hip.mean_ratio,
        hip.whole_volume_index,
    )
    for (concept, unit), number in zip(_NUMBERS, numbers, strict=True):
        if number is not None:
            yield _Observation(concept, side=side, number=number, unit=unit)
    change = assessed(findings, card, context).change
    yield from _compared(comparison.of_hip(change, side), side)


def _compared(values: Iterable[comparison.Value], side: Side | None) -> Iterator[_Observation]:
    for concept, number, unit in values:
        if number is not None:
            yield _Observation(concept, side=side, number=number, unit=unit)


def _comparable(comparable: bool) -> _Observation:  # noqa: FBT001 - it is the value
    return _Observation(codes.COMPARABLE, code=codes.YES if comparable else codes.NO)


def _reason(reason: Remark, side: Side | None) -> _Observation:
    code = codes.remark_code(reason)
    return _Observation(codes.REASON, side=side, code=code, notes=[reason.text])


def _notes(texts: Iterable[str]) -> Iterator[tuple[str, list[Field]]]:
    """NTE of the filler, numbered."""
    for number, text in enumerate(texts, start=1):
        yield "NTE", [str(number), "L", " ".join(text.split())]


def _status(context: ReportContext) -> str:
    """A result that supersedes another is its correction."""
    return _FINAL if context.predecessor is None else _CORRECTED
