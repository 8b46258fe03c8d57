"""Whose study it is and who ordered it, read from the header of one of its images."""

from __future__ import annotations

import re
import warnings

from pydicom.dataset import Dataset

from hipscore.attributes import first_item, text
from hipscore.domain import StudyIdentity

_DATE = re.compile(r"[0-9]{8}")
_TIME = re.compile(r"[0-9]{2,6}(\.[0-9]{1,6})?")
_SEXES = frozenset({"M", "F", "O"})  # PS3.3 C.7.1.1


def identity(image: Dataset) -> StudyIdentity:
    """Read :class:`StudyIdentity` from an image (PS3.3 C.7.1.1, C.7.2.1, 10-9); never an error.

    What is longer than its value representation allows (PS3.5 table 6.2-1) is cut, what has
    another form is left out. Text is decoded by Specific Character Set (0008,0005).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about what is judged here; it quotes values
        return _identity(image)


def _identity(image: Dataset) -> StudyIdentity:
    request = first_item(image, "RequestAttributesSequence")
    accession = _line(image, "AccessionNumber", 16) or _line(request, "AccessionNumber", 16)
    procedure = _line(request, "RequestedProcedureID", 16)
    described = _line(request, "RequestedProcedureDescription", 64) or _line(
        image, "RequestedProcedureDescription", 64
    )
    referring = _line(image, "ReferringPhysicianName", 324)
    sex = _line(image, "PatientSex", 16).upper()
    return StudyIdentity(
        patient_id=_line(image, "PatientID", 64),
        issuer_of_patient_id=_line(image, "IssuerOfPatientID", 64),
        patient_name=_line(image, "PatientName", 324),
        birth_date=_formed(image, "PatientBirthDate", _DATE),
        sex=sex if sex in _SEXES else "",
        study_date=_formed(image, "StudyDate", _DATE),
        study_time=_formed(image, "StudyTime", _TIME)[:16],
        study_id=_line(image, "StudyID", 16),
        study_description=_line(image, "StudyDescription", 64),
        accession_number=accession,
        requested_procedure_id=procedure,
        requested_procedure_description=described,
        referring_physician=referring,
        order_source="images" if accession else "",
    )


def _line(image: Dataset, keyword: str, longest: int) -> str:
    """One line of text without control characters, at most ``longest`` characters."""
    return "".join(each for each in text(image, keyword) if each.isprintable())[:longest].strip()


def _formed(image: Dataset, keyword: str, form: re.Pattern[str]) -> str:
    value = text(image, keyword)
    return value if form.fullmatch(value) else ""
