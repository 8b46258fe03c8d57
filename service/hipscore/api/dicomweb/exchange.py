"""What the routes of the worklist share: media types, UIDs in queries, warnings (PS3.18 8)."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Path, Request, Response

from hipscore.addresses import ae_title
from hipscore.api.problems import problem
from hipscore.header import is_uid
from hipscore.procedure.dataset import Attributes, Malformed, read

DICOM_JSON = "application/dicom+json"
#: longest body, bytes
LARGEST = 1024 * 1024

_ELEMENT = {
    "type": "object",
    "required": ["vr"],
    "properties": {
        "vr": {"type": "string", "minLength": 2, "maxLength": 2},
        "Value": {"type": "array", "items": {}},
    },
}
#: one data set of the DICOM JSON model (PS3.18 F.2)
DATA_SET: dict[str, Any] = {"type": "object", "additionalProperties": _ELEMENT}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {DICOM_JSON: {"schema": DATA_SET}},
    }
}
ITEMS: dict[str, Any] = {"content": {DICOM_JSON: {"schema": {"type": "array", "items": DATA_SET}}}}

WorkitemUid = Annotated[
    str,
    Path(
        description="SOP Instance UID of the work item (PS3.5 9.1)",
        json_schema_extra={"pattern": r"^[0-9]+(\.[0-9]+)*$", "maxLength": 64},
        examples=["2.25.1"],
    ),
]
Title = Annotated[
    str,
    Path(
        description="AE title of the subscriber (PS3.5 6.2)",
        json_schema_extra={"pattern": r"^[ -\[\]-~]+$", "maxLength": 16},
        examples=["MANAGER"],
    ),
]


def warning(request: Request, text: str) -> dict[str, str]:
    """The Warning header of PS3.18: code 299, the base of the service, and its text."""
    return {"Warning": f"299 {base(request)}: {text}"}


def base(request: Request) -> str:
    """Path of the DICOMweb services."""
    return f"{request.scope.get('root_path', '')}/dicomweb"


def failure(request: Request, status: int, detail: str, text: str) -> Response:
    """A problem document with the Warning header that the standard asks for."""
    return problem(status, detail, headers=warning(request, text))


def bad(text: object) -> HTTPException:
    """What is wrong with a request, as 400."""
    return HTTPException(HTTPStatus.BAD_REQUEST, str(text))


def checked_uid(text: str) -> str:
    """The UID, if it is one; else 400."""
    if not is_uid(text):
        msg = "the path or query does not name a work item by its UID (PS3.5 9.1)"
        raise bad(msg)
    return text


def checked_title(text: str) -> str:
    """The AE title, if it is one; else 400."""
    try:
        return ae_title(text)
    except ValueError as error:
        raise bad(error) from None


def uid_in_query(request: Request, names: Sequence[str]) -> str | None:
    """A UID that the query gives: as the value of one of ``names``, or bare (PS3.18 11.4.1.1)."""
    for name, text in request.query_params.multi_items():
        if name in names:
            return checked_uid(text)
        if not text and is_uid(name):
            return name
    return None


def negotiate(request: Request) -> None:
    """Refuse with 406 whoever takes anything but the DICOM JSON model (PS3.18 8.7.5)."""
    asked = request.query_params.get("accept") or request.headers.get("accept") or "*/*"
    kinds = (each.split(";")[0].strip().lower() for each in asked.split(","))
    if not any(each in {"*/*", "application/*", DICOM_JSON} for each in kinds):
        msg = f"work items are only there as {DICOM_JSON}"
        raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, msg)


async def _body(request: Request) -> Attributes:
    """The data set in the body; 415, 413 or 400 where there is none."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != DICOM_JSON:
        msg = f"send {DICOM_JSON}"
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, msg)
    return _parsed(await _read(request))


async def _optional_body(request: Request) -> Attributes:
    """As above; nothing at all is an empty data set."""
    if not request.headers.get("content-type"):
        data = await _read(request)
        if not data:
            return {}
        msg = f"send {DICOM_JSON}"
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, msg)
    return await _body(request)


async def _read(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST:
            msg = f"a work item has at most {LARGEST} bytes"
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, msg)
    return bytes(data)


def _parsed(data: bytes) -> Attributes:
    try:
        return read(data)
    except Malformed as error:
        raise bad(error) from None


Body = Annotated[Attributes, Depends(_body)]
OptionalBody = Annotated[Attributes, Depends(_optional_body)]
