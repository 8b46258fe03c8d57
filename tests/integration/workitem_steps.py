"""Steps the tests of the worklist are told in: items are created, claimed, ended, searched."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
from pydicom.dataset import Dataset

from hipscore.procedure import analysis, reports
from hipscore.procedure.dataset import Attributes, code, data_set, value, values
from hipscore.procedure.reports import Report
from hipscore.procedure.rules import PERFORMED, PROGRESS
from hipscore.settings import Settings
from tests.serving import serving as behind_uvicorn

DICOM_JSON = "application/dicom+json"
PLAIN = code("110001", "DCM", "Image Processing")
GLOBAL = "1.2.840.10008.5.1.4.34.5"
FILTERED = "1.2.840.10008.5.1.4.34.5.1"


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[httpx.Client]:
    """A client of the API behind uvicorn, with web-sockets."""
    with (
        behind_uvicorn(settings, ws="auto") as base,
        httpx.Client(base_url=f"{base}/dicomweb", trust_env=False, timeout=30.0) as client,
    ):
        yield client


def new_uid() -> str:
    """A UID that nobody has."""
    return f"2.25.{uuid4().int}"


def scheduled(*, what: Attributes = PLAIN, **more: Any) -> Attributes:
    """A complete new item; further attributes by keyword."""
    usual: dict[str, Any] = {
        "ProcedureStepState": "SCHEDULED",
        "ProcedureStepLabel": "Look at it",
        "WorklistLabel": "",
        "ScheduledProcedureStepPriority": "MEDIUM",
        "ScheduledProcedureStepStartDateTime": "20260314093000",
        "InputReadinessState": "READY",
        "ScheduledWorkitemCodeSequence": [what],
        "ScheduledProcessingParametersSequence": [],
        "ScheduledStationNameCodeSequence": [],
        "ScheduledStationClassCodeSequence": [],
        "ScheduledStationGeographicLocationCodeSequence": [],
        "CommentsOnTheScheduledProcedureStep": "",
        "InputInformationSequence": [],
        "PatientName": "",
        "PatientID": "",
        "PatientBirthDate": "",
        "PatientSex": "",
        "AdmissionID": "",
        "IssuerOfAdmissionIDSequence": [],
        "AdmittingDiagnosesDescription": "",
        "AdmittingDiagnosesCodeSequence": [],
        "ReferencedRequestSequence": [],
        PROGRESS: [],
        PERFORMED: [],
    }
    return data_set(**{**usual, **more})


def order(images: Sequence[Dataset], *, series: bool = True) -> Attributes:
    """A new item that orders the analysis of a series, or of a study."""
    named = {"StudyInstanceUID": str(images[0].StudyInstanceUID), "TypeOfInstances": "DICOM"}
    if series:
        named["SeriesInstanceUID"] = str(images[0].SeriesInstanceUID)
    return scheduled(what=analysis.HIP_SCORE, InputInformationSequence=[data_set(**named)])


def performed() -> Attributes:
    """What a performer sets before it completes an item."""
    done = data_set(
        PerformedStationNameCodeSequence=[code("WS1", "99TEST", "Workstation 1")],
        PerformedWorkitemCodeSequence=[PLAIN],
        PerformedProcedureStepStartDateTime="20260314093000",
        PerformedProcedureStepEndDateTime="20260314094500",
        OutputInformationSequence=[],
    )
    return data_set(**{PERFORMED: [done]})


def send(
    api: httpx.Client, method: str, path: str, body: Any = None, **more: Any
) -> httpx.Response:
    """One request with a data set."""
    content = json.dumps(body)
    return api.request(method, path, content=content, headers={"Content-Type": DICOM_JSON}, **more)


def create(api: httpx.Client, attributes: Attributes | None = None) -> str:
    """Create an item; its UID."""
    uid = new_uid()
    body = scheduled() if attributes is None else attributes
    answer = send(api, "POST", f"/workitems?{uid}", body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/dicomweb/workitems/{uid}"
    return uid


def to_state(
    api: httpx.Client, uid: str, state: str, transaction: str | None = "1.2.3"
) -> httpx.Response:
    """Ask for a state."""
    body = data_set(ProcedureStepState=state, TransactionUID=transaction)
    return send(api, "PUT", f"/workitems/{uid}/state", body)


def retrieve(api: httpx.Client, uid: str) -> Attributes:
    """The item; it is a data set that pydicom takes, and shows no Transaction UID."""
    answer = api.get(f"/workitems/{uid}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == DICOM_JSON
    (item,) = answer.json()
    read = Dataset.from_json(item)
    assert Dataset.from_json(read.to_json()) == read
    assert len(list(read)) == len(item)
    assert "00081195" not in item
    checked: Attributes = item
    return checked


def state(api: httpx.Client, uid: str) -> str:
    """Procedure Step State of an item."""
    return str(value(retrieve(api, uid), "ProcedureStepState"))


def found(api: httpx.Client, **query: str) -> list[str]:
    """UIDs of the items that a search finds."""
    answer = api.get("/workitems", params={name.replace("__", "."): v for name, v in query.items()})
    assert answer.status_code in {200, 204}, answer.text
    items = answer.json() if answer.status_code == 200 else []
    for item in items:
        Dataset.from_json(item)
    return [str(value(item, "SOPInstanceUID")) for item in items]


def of_study(api: httpx.Client, study_uid: str) -> list[Attributes]:
    """The items whose input is of a study, oldest first."""
    key = "InputInformationSequence.StudyInstanceUID"
    answer = api.get("/workitems", params={key: study_uid, "includefield": "all"})
    return list(answer.json()) if answer.status_code == 200 else []


def outputs(item: Attributes) -> dict[str, str]:
    """SOP class by instance, of what was made."""
    (done,) = values(item, PERFORMED)
    return {
        value(reference, "ReferencedSOPInstanceUID"): value(reference, "ReferencedSOPClassUID")
        for series in values(done, "OutputInformationSequence")
        for reference in values(series, "ReferencedSOPSequence")
    }


def now() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)


def report() -> Report:
    """Some event."""
    return reports.state(scheduled())
