"""Which series are scored, and which of the results go where: rules, decided by pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from hipscore.domain import ArtifactKind, ReceivedInstance

#: what travels unless a destination's configuration says otherwise
DICOM_RESULTS = frozenset({ArtifactKind.SEG, ArtifactKind.SR})
#: rule of a series that no rule matches
NO_RULE = "no_rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """How a series came: AE titles of its first association, and address of the sender."""

    calling_aet: str
    called_aet: str
    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a series is scored and by which rule.

    ``explanation`` has one line per rule that was tried: what matched, or what did not.
    """

    matched: bool
    rule: str
    explanation: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules in force. Without any, the default rule decides."""

    rules: tuple[object, ...] = ()
    #: results per destination, by its address
    artifacts: Mapping[str, frozenset[ArtifactKind]]


def decide(
    rules: Rules, header: Dataset, instances: Sequence[ReceivedInstance], came: Came
) -> Decision:
    """Decide about one complete series.

    Parameters
    ----------
    rules
        The rules in force.
    header
        Everything before the pixel data of its first image.
    instances
        All its images.
    came
        How it came.
    """
    del rules, header, came
    if not instances:
        return Decision(matched=False, rule="no_images")
    if all("LOCALIZER" in each.image_type for each in instances):
        return Decision(matched=False, rule="localizer")
    return Decision(matched=True, rule="offered_sop_class")


def travels(rules: Rules, rule: str | None, destination: str, kind: ArtifactKind) -> bool:
    """Whether results of this kind go to this destination, for a series matched by ``rule``."""
    del rule
    return kind in rules.artifacts.get(destination, DICOM_RESULTS)
