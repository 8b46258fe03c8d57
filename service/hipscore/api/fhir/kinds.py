"""What can be searched for in each type of resource: one table for searching and describing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hipscore.api.fhir import observations, resources
from hipscore.api.fhir.datatypes import coding
from hipscore.store.clinical import Stage

#: most resources of a page; of ImagingStudy fewer, because each names all its images
LARGEST_PAGE = 200
LARGEST_IMAGING_PAGE = 50
PAGE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What can be searched for in one type of resource.

    ``date`` is the name of the parameter for the study date; ``status`` maps what we say to
    what the store knows; ``codes`` are the tokens that every resource of the type has.
    """

    name: str
    date: str
    stages: dict[Stage, str] | None
    codes: dict[str, frozenset[tuple[str, str]]]
    parameters: dict[str, str]


_PATIENT_TEXT = "Patient/KEY, the opaque key in the contained Patient; `subject` is the same"
_COMMON = {
    "_id": "id of the resource",
    "_lastUpdated": "when the study or its result changed last: date with prefix",
    "patient": _PATIENT_TEXT,
    "subject": _PATIENT_TEXT,
    "status": "status code",
    "_count": f"resources of a page, at most {LARGEST_PAGE}; 0: only their number",
    "_sort": "the date parameter of the type, with - for newest first",
    "_cursor": "from the next link of the previous page",
}
_IDENTIFIER = {"identifier": "Study Instance UID (urn:dicom:uid|urn:oid:UID) or accession number"}
_CODES = {"code": "system|code", "category": "system|code"}
_DATE = "study date, with a prefix (eq, ne, ge, gt, le, lt, sa, eb)"


def _pairs(codings: Iterable[dict[str, str]]) -> frozenset[tuple[str, str]]:
    return frozenset((each["system"], each["code"]) for each in codings)


REPORTS = Kind(
    name="DiagnosticReport",
    date="date",
    stages=resources.STATUS,
    codes={
        "code": _pairs(coding(code) for code in resources.REPORT_CODES),
        "category": frozenset({(resources.CATEGORY_SYSTEM, resources.CATEGORY)}),
    },
    parameters={
        **_COMMON,
        **_IDENTIFIER,
        **_CODES,
        "date": _DATE,
        "_include": "DiagnosticReport:result",
    },
)
OBSERVATIONS = Kind(
    name="Observation",
    date="date",
    stages=observations.STATUS,
    codes={
        "code": frozenset(observations.tokens()),
        "category": frozenset({(observations.CATEGORY_SYSTEM, observations.CATEGORY)}),
    },
    parameters={**_COMMON, **_CODES, "date": _DATE, "derived-from": "ImagingStudy/UID"},
)
IMAGING = Kind(
    name="ImagingStudy",
    date="started",
    stages=None,
    codes={},
    parameters={**_COMMON, **_IDENTIFIER, "started": _DATE},
)
KINDS = (REPORTS, OBSERVATIONS, IMAGING)
