"""FHIR R4 (4.0.1), reading only: DiagnosticReport, Observation and ImagingStudy."""

from __future__ import annotations

from hipscore.api.fhir.outcome import Outcomes
from hipscore.api.fhir.routes import describe_in, router

__all__ = ["Outcomes", "describe_in", "router"]
