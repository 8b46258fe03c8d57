"""A withdrawn result as an HL7 v2.5.1 message: the one that was sent, once more, as wrong.

It is made from the bytes that went, so that it names the same patient, order and observations,
whatever was corrected meanwhile. OBX-11 is ``W`` of HL7 table 0085 ("post original as wrong"),
not ``D`` ("deletes the OBX record"): somebody may have acted on the result, so that it has to
stay in the record, marked. Table 0123 has no such status for the order (OBR-25): it is ``C``.
"""

from __future__ import annotations

import hl7

from hipscore.domain import RESEARCH_USE
from hipscore.reporting import ReportContext
from hipscore.reporting.hl7v2 import derived, moment, segment
from hipscore.reporting.rejection import TITLES, Why

_WRONG = "W"  # HL7 table 0085
_CORRECTED = "C"  # HL7 table 0123


def build_retraction(message: bytes, why: Why, context: ReportContext) -> bytes:
    """Build the message that takes back another.

    No value is left in it, and no note, which might repeat one. MSH-10 is derived from the
    analysis, and is not that of its result.

    Parameters
    ----------
    message
        The message of the result (:mod:`hipscore.reporting.oru`).
    why
        The reason.
    context
        Key of the job of the result, and the time of the withdrawal.

    Returns
    -------
    bytes
        As :func:`hipscore.reporting.oru.build_oru`.

    Raises
    ------
    ValueError
        If ``message`` is no message of ours.
    """
    try:
        parsed = hl7.parse(message.decode("utf-8"))
        header, order, request = (parsed.segment(each) for each in ("MSH", "ORC", "OBR"))
    except (hl7.ParseException, UnicodeDecodeError, KeyError, IndexError) as error:
        text = f"not a message of a result: {type(error).__name__}"
        raise ValueError(text) from None
    now = moment(context.created_at)
    header.assign_field(now, 7)
    header.assign_field(derived("oru", context.job_key, "retraction"), 10)
    order.assign_field(now, 9)
    request.assign_field(now, 22)
    request.assign_field(_CORRECTED, 25)
    notes = (
        RESEARCH_USE,
        f"The result was withdrawn by an operator ({TITLES[why].meaning}). It is not to be used",
    )
    kept = [each for each in parsed if str(each[0]) != "NTE"]
    place = kept.index(request) + 1
    kept[place:place] = [
        segment(parsed, "NTE", [str(number), "L", text])
        for number, text in enumerate(notes, start=1)
    ]
    parsed[:] = kept
    for observation in parsed.segments("OBX"):
        observation.assign_field("", 5)  # empty, not "": there is nothing instead
        observation.assign_field("", 8)
        observation.assign_field(_WRONG, 11)
    return str(parsed).encode("utf-8")
