"""The data types of FHIR R4 that our resources are made of, as plain dictionaries."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

from pydicom.sr.coding import Code

from hipscore.store.tables import Study

Json: TypeAlias = dict[str, Any]

UCUM = "http://unitsofmeasure.org"
SNOMED = "http://snomed.info/sct"
DICOM = "http://dicom.nema.org/resources/ontology/DCM"
DICOM_UID = "urn:dicom:uid"
URI = "urn:ietf:rfc:3986"
#: the private codes of the reports, 99HIPSCORE in DICOM
LOCAL = "urn:hipscore:99HIPSCORE"
#: the opaque key of a patient, as ``patient=Patient/KEY`` takes it
PATIENT_KEY = "urn:hipscore:patient-key"
_ISSUER = "urn:hipscore:issuer:"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
IDENTIFIER_TYPE = f"{_TERMINOLOGY}/v2-0203"
DATA_ABSENT = f"{_TERMINOLOGY}/data-absent-reason"
INTERPRETATION = f"{_TERMINOLOGY}/v3-ObservationInterpretation"

_SYSTEMS = {"SCT": SNOMED, "DCM": DICOM, "UCUM": UCUM, "99HIPSCORE": LOCAL}
#: more digits than the method has, and short numbers; as in the structured report
_DECIMALS = 6
_GENDERS = {"M": "male", "F": "female", "O": "other"}
#: component groups of a person name (PS3.5 6.2.1.1) in HL7's words
_REPRESENTATIONS = ("ABC", "IDE", "SYL")
_REPRESENTATION = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"
_OID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")
_SPACE = re.compile(r"\s+")


def some(**members: Any) -> Json:
    """The members that are not empty: FHIR knows no null, no empty text and no empty list."""
    return {name: value for name, value in members.items() if value not in (None, "", [], {}, ())}


def coding(code: Code) -> Json:
    """Coding of a DICOM code."""
    system = _SYSTEMS[str(code.scheme_designator)]
    return {"system": system, "code": str(code.value), "display": str(code.meaning)}


def concept(*codes: Code, text: str = "") -> Json:
    """CodeableConcept; several codes are translations of one another."""
    return some(coding=[coding(code) for code in codes], text=line(text))


def term(system: str, code: str, display: str = "", *, text: str = "") -> Json:
    """CodeableConcept of one code of a terminology that DICOM does not know."""
    return some(coding=[some(system=system, code=code, display=display)], text=line(text))


def quantity(value: float, unit: str = "1") -> Json:
    """Quantity with a UCUM unit."""
    number = value if isinstance(value, int) else round(float(value), _DECIMALS)
    return {"value": number, "unit": unit, "system": UCUM, "code": unit}


def line(text: str) -> str:
    """Text without leading, trailing and repeated white space, which FHIR forbids in places."""
    return _SPACE.sub(" ", text).strip()


def uid_identifier(uid: str) -> Json:
    """Identifier of something that has a DICOM UID."""
    return {"system": DICOM_UID, "value": f"urn:oid:{uid}"}


def accession(number: str) -> list[Json]:
    """Accession number as identifier, if there is one. Who gave it is not known here."""
    if not line(number):
        return []
    kind = term(IDENTIFIER_TYPE, "ACSN", "Accession ID")
    return [{"type": kind, "value": line(number)}]


def fhir_date(text: str) -> str | None:
    """A DICOM date (``YYYYMMDD``) as FHIR date; None where it is none."""
    try:
        day = date(int(text[:4]), int(text[4:6]), int(text[6:8]))
    except ValueError:
        return None
    return day.isoformat()


def instant(at: datetime) -> str:
    """A time as FHIR instant, in UTC to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def issuer_system(issuer: str) -> str | None:
    """System of patient IDs of this issuer (0010,0021); None without one."""
    if not issuer:
        return None
    return f"urn:oid:{issuer}" if _OID.fullmatch(issuer) else _ISSUER + quote(issuer, safe="")


def issuer_of(system: str) -> str | None:
    """The issuer whose system this is; None if it is none of ours."""
    if not system:
        return ""
    if system.startswith("urn:oid:"):
        return system.removeprefix("urn:oid:")
    return unquote(system.removeprefix(_ISSUER)) if system.startswith(_ISSUER) else None


def patient(study: Study) -> Json:
    """The patient of a study, contained: we hold what the images said, not a register."""
    return {
        "resourceType": "Patient",
        "id": "patient",
        **some(
            identifier=[*_patient_id(study), *_patient_key(study)],
            name=_names(study.patient_name),
            gender=_GENDERS.get(study.sex),
            birthDate=fhir_date(study.birth_date),
        ),
    }


def subject(study: Study) -> Json:
    """Reference to the contained patient."""
    return {"reference": "#patient", **some(identifier=next(iter(_patient_id(study)), None))}


def _patient_id(study: Study) -> list[Json]:
    if not line(study.patient_id):
        return []
    issuer = study.issuer_of_patient_id
    return [
        some(
            type=term(IDENTIFIER_TYPE, "MR", "Medical record number"),
            system=issuer_system(issuer),
            value=line(study.patient_id),
            assigner=some(display=line(issuer)),
        )
    ]


def _patient_key(study: Study) -> list[Json]:
    return [{"system": PATIENT_KEY, "value": study.patient_key}] if study.patient_key else []


def _names(person_name: str) -> list[Json]:
    """HumanName of each component group of a person name (PS3.5 6.2.1.1)."""
    names = []
    groups = person_name.split("=")
    for group, representation in zip(groups, _REPRESENTATIONS, strict=False):
        parts = [line(part) for part in group.split("^")]
        family, given, middle, prefix, suffix = (*parts, "", "", "", "", "")[:5]
        name = some(
            text=" ".join(part for part in (prefix, given, middle, family, suffix) if part),
            family=family,
            given=[part for part in (given, middle) if part],
            prefix=[prefix] if prefix else [],
            suffix=[suffix] if suffix else [],
        )
        if name and len(groups) > 1:
            name["extension"] = [{"url": _REPRESENTATION, "valueCode": representation}]
        if name:
            names.append(name)
    return names


def stamped(resource: Json, changed: datetime, contained: Sequence[Json] = ()) -> Json:
    """The resource with its version: other content is another version, whatever changed it."""
    body = json.dumps([resource, contained], sort_keys=True).encode()
    digest = hashlib.sha256(body).hexdigest()[:12]
    version = f"{int(changed.timestamp() * 1000)}-{digest}"
    return {
        "resourceType": resource["resourceType"],
        "id": resource["id"],
        "meta": {"versionId": version, "lastUpdated": instant(changed)},
        **some(text=resource.get("text"), contained=list(contained)),
        **resource,
    }
