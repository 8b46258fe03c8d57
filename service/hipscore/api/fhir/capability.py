"""CapabilityStatement: what this server can do, from the same table that searches read."""

from __future__ import annotations

from hipscore import __version__
from hipscore.api.fhir.datatypes import Json
from hipscore.api.fhir.kinds import KINDS, OBSERVATIONS, REPORTS, Kind
from hipscore.domain import RESEARCH_USE

FHIR_VERSION = "4.0.1"
#: when this statement changed last
_DATE = "2026-11-23"
_TYPES = {
    "_id": "token",
    "_lastUpdated": "date",
    "patient": "reference",
    "subject": "reference",
    "status": "token",
    "identifier": "token",
    "code": "token",
    "category": "token",
    "date": "date",
    "started": "date",
    "derived-from": "reference",
}
_NAMING = (
    "The patient's own identifier (`patient.identifier`) is taken by POST to `_search` only, "
    "because URLs are written to the logs of proxies; the answer goes on under an opaque key."
)


def statement(base: str) -> Json:
    """CapabilityStatement of this server, reachable under ``base``."""
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": _DATE,
        "kind": "instance",
        "software": {"name": "hipscore", "version": __version__},
        "implementation": {
            "description": f"Hip inflammation scores from coronal STIR MRI. {RESEARCH_USE}.",
            "url": f"{base}/fhir",
        },
        "fhirVersion": FHIR_VERSION,
        "format": ["application/fhir+json"],
        "rest": [
            {
                "mode": "server",
                "documentation": f"Reading only. {_NAMING}",
                "resource": [_resource(kind) for kind in KINDS],
            }
        ],
    }


def _resource(kind: Kind) -> Json:
    parameters = [
        {"name": name, "type": _TYPES[name], "documentation": text}
        for name, text in kind.parameters.items()
        if name in _TYPES
    ]
    resource = {
        "type": kind.name,
        "interaction": [{"code": "read"}, {"code": "search-type"}],
        "versioning": "versioned",
        "readHistory": False,
        "conditionalRead": "not-match",
        "searchParam": parameters,
    }
    if kind is REPORTS:
        resource["searchInclude"] = ["DiagnosticReport:result"]
    if kind is OBSERVATIONS:
        resource["documentation"] = (
            "One for the patient and one for each hip of an analysis; a new analysis has new ones."
        )
    return resource
