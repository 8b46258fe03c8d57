"""Sending HL7 v2 messages over MLLP (HL7 v2.5.1 2.9, appendix C; IHE ITI TF-2 C.2).

A message goes in original mode: it is delivered when the receiver has accepted it with an
acknowledgment that names it. The receiver's own words (MSA-3, ERR) may quote the message, and
so a patient: they are neither stored nor logged.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import hl7
from hl7.mllp import HL7StreamReader, HL7StreamWriter, InvalidBlockError, open_hl7_connection

from hipscore.addresses import Mllp
from hipscore.domain import Outcome

#: largest acknowledgment that is read, bytes
_LARGEST_ANSWER = 64 * 1024
#: seconds for the end of the connection
_FAREWELL_S = 1.0
#: a message in whose content the receiver sees an error is sent so often before it is given up:
#: many receivers say so of troubles of their own
FEW = 5

#: MSA-1, HL7 table 0008: application and accept acknowledgments
_ACCEPTED = frozenset({"AA", "CA"})
_ERROR = frozenset({"AE", "CE"})
_REJECTED = frozenset({"AR", "CR"})
#: ERR-3, HL7 table 0357
_MEANINGS = {
    "100": "segment sequence error",
    "101": "required field missing",
    "102": "data type error",
    "103": "table value not found",
    "200": "unsupported message type",
    "201": "unsupported event code",
    "202": "unsupported processing id",
    "203": "unsupported version id",
    "204": "unknown key identifier",
    "205": "duplicate key identifier",
    "206": "application record locked",
    "207": "application internal error",
}
#: those that say nothing about the message
_PASSING = frozenset({"206", "207"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds to wait for the connection, and for the message to go and its answer to come."""

    connection: float = 10.0
    answer: float = 60.0


DEFAULT_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What of an acknowledgment decides: MSA-1, MSA-2, and the code of the error."""

    code: str
    control_id: str
    error: str


def send(
    receiver: Mllp,
    message: bytes,
    *,
    application: str = "",
    facility: str = "",
    attempt: int = 1,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Outcome:
    """Send one message and wait for its acknowledgment.

    Parameters
    ----------
    receiver
        Where to.
    message
        In UTF-8, its segments ended by carriage returns. MSH-10 is the same on every try, so
        that a receiver can recognise what it has got before.
    application, facility
        MSH-5 and MSH-6, where the message leaves them empty.
    attempt
        How often this message was sent, this time included.
    timeouts
        How long to wait.

    Returns
    -------
    Outcome
        Delivered when an acknowledgment whose MSA-2 is our MSH-10 says AA or CA. AR says
        nothing against the message (2.9.2.2), unless its error does: sent again. AE and CE:
        sent again a few times, then refused; errors 206 and 207 (locked, internal error) are
        always for now, and what table 0357 says of the content is for ever.

    Raises
    ------
    ValueError
        If ``message`` is no HL7 message with a control ID.
    """
    addressed, control_id = _addressed(message, application, facility)
    return asyncio.run(_exchange(receiver, addressed, control_id, attempt, timeouts))


def _addressed(message: bytes, application: str, facility: str) -> tuple[bytes, str]:
    """The message with its receiver, and its control ID."""
    try:
        parsed = hl7.parse(message.decode("utf-8"))
        header = parsed.segment("MSH")
        control_id = str(header(10))
    except (hl7.ParseException, UnicodeDecodeError, KeyError, IndexError) as error:
        msg = f"not an HL7 message with a control ID: {type(error).__name__}"
        raise ValueError(msg) from None
    for place, value in ((5, application), (6, facility)):
        if value and not str(header(place)):
            header.assign_field(parsed.escape(value), place)
    return str(parsed).encode("utf-8"), control_id


async def _exchange(
    receiver: Mllp, message: bytes, control_id: str, attempt: int, timeouts: Timeouts
) -> Outcome:
    try:
        async with asyncio.timeout(timeouts.connection):
            reader, writer = await open_hl7_connection(
                receiver.host, receiver.port, limit=_LARGEST_ANSWER
            )
    except TimeoutError:
        return _unreachable(f"{receiver} cannot be reached: no connection")
    except OSError as error:
        return _unreachable(f"{receiver} cannot be reached: {_cause(error)}")
    try:
        async with asyncio.timeout(timeouts.answer):
            answer = await _ask(reader, writer, message)
    except TimeoutError:
        text = f"{receiver} did not answer within {timeouts.answer:g} s"
        return Outcome(
            delivered=False, retry=True, status=None, text=text, unreachable=True, silent=True
        )
    except (OSError, asyncio.IncompleteReadError, InvalidBlockError, ValueError):
        return _again(f"{receiver} ended the connection or gave no answer that can be read")
    finally:
        await _leave(writer)
    if answer.control_id != control_id:
        return _again(f"{receiver} acknowledged another message than ours (MSA-2)")
    return _judge(receiver, answer, attempt)


async def _ask(reader: HL7StreamReader, writer: HL7StreamWriter, message: bytes) -> _Answer:
    """Raises ValueError for what is no acknowledgment."""
    writer.writeblock(message)
    await writer.drain()
    block: bytes = await reader.readblock()
    try:
        # what is read of it is ASCII, whatever the rest is
        parsed = hl7.parse(block.strip(b"\r\n").decode("utf-8", "replace"))
        acknowledgment = parsed.segment("MSA")
    except (hl7.ParseException, KeyError, IndexError) as error:
        msg = "no acknowledgment"
        raise ValueError(msg) from error
    return _Answer(
        code=_part(acknowledgment, 1).upper(),
        control_id=_part(acknowledgment, 2),
        error=_error(parsed),
    )


def _error(parsed: hl7.Message) -> str:
    """ERR-3 (since v2.5), else MSA-6 (before); the first that is one of the table."""
    for name, place in (("ERR", 3), ("MSA", 6)):
        for segment in parsed:
            code = _part(segment, place) if str(segment[0]) == name else ""
            if code in _MEANINGS:
                return code
    return ""


def _part(segment: hl7.Segment, place: int) -> str:
    """The first component of a field."""
    if len(segment) <= place:
        return ""
    return str(segment[place]).split("^", 1)[0].strip()


def _judge(receiver: Mllp, answer: _Answer, attempt: int) -> Outcome:
    if answer.code in _ACCEPTED:
        text = f"{receiver} accepted ({answer.code})"
        return Outcome(delivered=True, retry=False, status=None, text=text)
    if answer.code not in _ERROR | _REJECTED:
        return _again(f"{receiver} gave an answer that cannot be read")
    if answer.error:
        retry = answer.error in _PASSING
    elif answer.code == "AR":
        retry = True  # unrelated to content or format: system down, internal error
    else:
        retry = answer.code in _ERROR and attempt < FEW
    verdict = "cannot take it now" if retry else "refused"
    meaning = f" {answer.error} ({_MEANINGS[answer.error]})" if answer.error else ""
    text = f"{receiver} {verdict}, {answer.code}{meaning}"
    return Outcome(delivered=False, retry=retry, status=None, text=text)


def _cause(error: OSError) -> str:
    """Why there is no connection; asyncio has words of its own, with the address once more."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or "no connection"


async def _leave(writer: HL7StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(_FAREWELL_S):
            await writer.wait_closed()
    except OSError:  # TimeoutError too: a receiver that does not read must not hold us
        writer.transport.abort()


def _again(text: str) -> Outcome:
    return Outcome(delivered=False, retry=True, status=None, text=text)


def _unreachable(text: str) -> Outcome:
    return Outcome(delivered=False, retry=True, status=None, text=text, unreachable=True)
