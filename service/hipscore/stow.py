"""Sending by STOW-RS (PS3.18 10.5): one object per request, the answer as an Outcome.

What the service says in words stays out of the text: it may quote the patient's name.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from hipscore.addresses import DicomWeb
from hipscore.domain import Outcome
from hipscore.header import Unreadable, read_header

DICOM_JSON = "application/dicom+json"
#: largest answer that is read, bytes
_LARGEST_ANSWER = 1024 * 1024

_REFERENCED, _FAILED = "00081199", "00081198"
_INSTANCE, _FAILURE, _WARNING = "00081155", "00081197", "00081196"

#: Failure Reason (0008,1197), PS3.18 I.2.2; as in DIMSE
_MEANINGS = {
    0x0110: "processing failure",
    0x0111: "duplicate SOP instance",
    0x0122: "SOP class not supported",
    0x0124: "not authorised",
    0x0213: "resource limitation",
    0xC122: "transfer syntax not supported",
}
_RANGES = {0xA7: "out of resources", 0xA9: "data set does not match SOP class"}
_PASSING = frozenset({0x0110, 0x0213})
_DUPLICATE = 0x0111
_CLASS_NOT_SUPPORTED = 0x0122

#: answers that speak of each object
_SPEAKING = frozenset({HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.CONFLICT})
#: answers that say: later
_LATER = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
#: answers of a service that is down, whatever is sent
_DOWN = frozenset(
    {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
)
#: answers that no waiting changes
_NEVER = frozenset({HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED})
_ADVICE = {
    HTTPStatus.UNAUTHORIZED: "it wants credentials: see authorization_file in the rules file",
    HTTPStatus.FORBIDDEN: "our credentials may not store there",
    HTTPStatus.NOT_FOUND: "there is no STOW-RS under this URL; the base URL ends before /studies",
    HTTPStatus.METHOD_NOT_ALLOWED: "there is no STOW-RS under this URL",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "the object is too large for it",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "it takes no application/dicom",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds to wait for the connection, for any next bytes, and for all of it."""

    connection: float = 10.0
    answer: float = 60.0
    whole: float = 150.0


DEFAULT_TIMEOUTS = Timeouts()


def send(
    service: DicomWeb,
    data: bytes,
    *,
    authorization: str | None = None,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Outcome:
    """Send one Part 10 object, bytes unchanged.

    TLS is verified by the certificates the system trusts; no proxy is used, and no redirection
    followed.

    Parameters
    ----------
    service
        Where to.
    data
        The whole file.
    authorization
        Value of the header Authorization; None for none.
    timeouts
        How long to wait.

    Returns
    -------
    Outcome
        Delivered when the answer names the object in Referenced SOP Sequence, or says that it
        is there already (0x0111). Retry for no connection, no answer, an answer that does not
        speak of the object, 408, 425, 429 and 5xx, and for the passing failure reasons of
        :func:`hipscore.pacs.send`; any other answer refuses it.

    Raises
    ------
    ValueError
        If ``data`` is not a DICOM file.
    """
    try:
        uid = read_header(data).sop_instance_uid
    except Unreadable as error:
        msg = f"not a DICOM file: {error}"
        raise ValueError(msg) from error
    return asyncio.run(_send(service, uid, data, authorization, timeouts))


async def _send(
    service: DicomWeb, uid: str, data: bytes, authorization: str | None, timeouts: Timeouts
) -> Outcome:
    try:
        # httpx bounds each step; only this bounds a service that drips
        async with asyncio.timeout(timeouts.whole):
            answered = await _request(service, data, authorization, timeouts)
    except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout):
        text = f"{service} did not answer within {timeouts.answer:g} s"
        return Outcome(
            delivered=False, retry=True, status=None, text=text, unreachable=True, silent=True
        )
    except httpx.ConnectTimeout:
        return _unreachable(f"{service} cannot be reached: no connection")
    except httpx.ConnectError as error:
        return _unreachable(f"{service} cannot be reached: {_cause(error)}")
    except httpx.HTTPError:
        text = f"{service} ended the connection or gave no answer that can be read"
        return Outcome(delivered=False, retry=True, status=None, text=text)
    return _judge(service, uid, *answered)


async def _request(
    service: DicomWeb, data: bytes, authorization: str | None, timeouts: Timeouts
) -> tuple[int, bytes]:
    """Status and body of the answer."""
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": DICOM_JSON,
        **({"Authorization": authorization} if authorization else {}),
    }
    client = httpx.AsyncClient(
        verify=ssl.create_default_context() if service.url.startswith("https") else False,
        timeout=httpx.Timeout(timeouts.answer, connect=timeouts.connection),
        trust_env=False,
        follow_redirects=False,
    )
    async with (
        client,
        client.stream(
            "POST",
            f"{service.url}/studies",
            headers=headers,
            content=head + data + f"\r\n--{boundary}--\r\n".encode(),
        ) as answer,
    ):
        body = bytearray()
        async for chunk in answer.aiter_bytes():
            body += chunk
            if len(body) > _LARGEST_ANSWER:
                break
    return answer.status_code, bytes(body)


def _judge(service: DicomWeb, uid: str, status: int, body: bytes) -> Outcome:
    if status in _SPEAKING:
        spoken = _of_the_object(service, uid, status, body)
        if spoken is not None:
            return spoken
    shown = f"HTTP {status}"
    if 200 <= status < 300:
        text = f"{service} answered {shown} without naming the object; whether it has it is unknown"
        return Outcome(delivered=False, retry=True, status=status, text=text)
    if status in _LATER or (status >= 500 and status not in _NEVER):
        text = f"{service} cannot take it now, {shown}"
        down = status in _DOWN
        return Outcome(delivered=False, retry=True, status=status, text=text, unreachable=down)
    advice = _ADVICE.get(HTTPStatus(status)) if status in _ADVICE else None
    if 300 <= status < 400:
        advice = "it redirects; name the address it redirects to"
    text = f"{service} refused with {shown}" + (f": {advice}" if advice else "")
    return Outcome(delivered=False, retry=False, status=status, text=text)


def _of_the_object(service: DicomWeb, uid: str, status: int, body: bytes) -> Outcome | None:
    """What the answer says of the object; None if it does not speak of it."""
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    if isinstance(answer, list) and len(answer) == 1:  # some wrap the data set
        answer = answer[0]
    kept = _item(answer, _REFERENCED, uid)
    if kept is not None:
        warning = _number(kept, _WARNING)
        text = f"{service} accepted" + (f" with warning 0x{warning:04X}" if warning else "")
        return Outcome(delivered=True, retry=False, status=status, text=text)
    failed = _item(answer, _FAILED, uid)
    if failed is None:
        return None
    reason = _number(failed, _FAILURE)
    if reason is None:
        return None
    meaning = _MEANINGS.get(reason) or _RANGES.get(reason >> 8)
    shown = f"0x{reason:04X}" + (f" ({meaning})" if meaning else "")
    if reason == _DUPLICATE:
        text = f"{service} has it already, {shown}"
        return Outcome(delivered=True, retry=False, status=status, text=text)
    retry = reason >> 8 == 0xA7 or reason in _PASSING
    verdict = "cannot take it now" if retry else "refused with"
    return Outcome(
        delivered=False,
        retry=retry,
        status=status,
        text=f"{service} {verdict} {shown}",
        unsupported=reason == _CLASS_NOT_SUPPORTED,
    )


def _item(answer: Any, sequence: str, uid: str) -> dict[str, Any] | None:
    """The item of a sequence that is about the object (PS3.18 F.2)."""
    items = _values(answer, sequence)
    return next(
        (each for each in items if isinstance(each, dict) and uid in _values(each, _INSTANCE)), None
    )


def _number(item: dict[str, Any], tag: str) -> int | None:
    values = _values(item, tag)
    return values[0] if values and isinstance(values[0], int) else None


def _values(dataset: Any, tag: str) -> list[Any]:
    element = dataset.get(tag) if isinstance(dataset, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _cause(error: BaseException) -> str:
    """Why there is no connection, in the words of the system."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {seen.verify_message}"
        if isinstance(seen, OSError) and (seen.errno or 0) > 0:
            return os.strerror(seen.errno or 0)  # asyncio has words of its own
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return "no connection"


def _unreachable(text: str) -> Outcome:
    return Outcome(delivered=False, retry=True, status=None, text=text, unreachable=True)
