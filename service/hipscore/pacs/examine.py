"""Examining a peer: does it answer, and what would it take from us or do for us."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pynetdicom import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from hipscore.addresses import Peer
from hipscore.domain import Outcome
from hipscore.pacs.association import DEFAULT_TIMEOUTS, Timeouts, ask, associate, judge, leave


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What one association with a peer showed.

    ``echo`` is the answer to C-ECHO. ``accepted`` are the SOP classes of which it accepted a
    presentation context, of those that were proposed.
    """

    echo: Outcome
    accepted: frozenset[str] = frozenset()


def examine(
    peer: Peer,
    sop_classes: Sequence[str],
    *,
    calling_aet: str,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Examination:
    """Propose these SOP classes and Verification to a peer, and send a C-ECHO (PS3.4 annex A)."""
    contexts = [build_context(uid) for uid in (Verification, *sop_classes)]
    association = associate(peer, contexts, calling_aet, timeouts)
    if isinstance(association, Outcome):
        return Examination(echo=association)
    try:
        accepted = {str(each.abstract_syntax) for each in association.accepted_contexts}
        if Verification not in accepted:
            text = f"{peer} accepts an association but no C-ECHO"
            echo = Outcome(delivered=False, retry=False, status=None, text=text)
        else:
            answer = ask(peer, timeouts, association.send_c_echo)
            echo = answer if isinstance(answer, Outcome) else judge(peer, answer.Status)
    finally:
        leave(association)
    return Examination(echo=echo, accepted=frozenset(accepted) - {Verification})
