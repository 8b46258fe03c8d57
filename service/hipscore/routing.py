"""Which series are scored, and which of the results go where: rules, decided by pure functions.

The first rule all of whose conditions hold decides. What a rule may ask is in
:mod:`hipscore.conditions`; the rules file is read by :mod:`hipscore.keeping.rules`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address

from pydicom.dataset import Dataset

from hipscore.conditions import (
    BodyPart,
    Came,
    Check,
    Condition,
    Derived,
    FatSuppressed,
    From,
    Offered,
    Orientation,
)
from hipscore.domain import ArtifactKind, ReceivedInstance

__all__ = [
    "ASKED_FOR",
    "DEFAULT",
    "DICOM_RESULTS",
    "EXPLAINED",
    "NO_RULE",
    "ORDERED",
    "RESERVED",
    "TRIAL",
    "TRIAL_AET",
    "Action",
    "Came",
    "Decision",
    "Receiver",
    "Rule",
    "Rules",
    "Trial",
    "built",
    "decide",
    "receiver",
    "travels",
    "wanted",
]

#: what travels to a DICOM or DICOMweb destination unless its configuration says otherwise
DICOM_RESULTS = frozenset({ArtifactKind.SEG, ArtifactKind.SR})
#: all that an HL7 receiver takes
HL7_RESULTS = frozenset({ArtifactKind.ORU})
#: what is built of every analysis, whoever wants it: pages and the API show it
ALWAYS_BUILT = frozenset(
    {
        ArtifactKind.SEG,
        ArtifactKind.SR,
        ArtifactKind.SR_FALLBACK,
        ArtifactKind.OVERLAY,
        ArtifactKind.PDF,
    }
)
#: rule of a series that no rule matches
NO_RULE = "no_rule"
#: rule of a series that is analysed so that its study is not met with silence
EXPLAINED = "explained"
#: rule of a series that somebody asked for
ORDERED = "ordered"
#: calling AE title of the trial study of ``hipscore doctor``, and the rule that takes it
TRIAL_AET = "HIPSCORE_DOCTOR"
TRIAL = "trial"
#: analysed whatever the rules say
ASKED_FOR = frozenset({EXPLAINED, ORDERED})
#: names that no rule of a file may have
RESERVED = frozenset({NO_RULE, EXPLAINED, ORDERED, TRIAL, "localizer", "no_images"})
#: the ledger keeps so many lines of an explanation
_LINES = 20


class Action(StrEnum):
    """What becomes of a series that a rule matches."""

    SCORE = "score"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. Without conditions it matches everything.

    ``destinations`` are the addresses that alone get its results; None is all of them.
    """

    name: str
    action: Action = Action.SCORE
    conditions: tuple[Condition, ...] = ()
    destinations: frozenset[str] | None = None

    def takes_from(self, came: Came) -> bool:
        """Whether the rule takes anything that came this way, whatever it shows."""
        return all(each.admits(came) for each in self.conditions if isinstance(each, From))


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """One destination as the rules file describes it.

    Parameters
    ----------
    address
        As :func:`hipscore.addresses.destination` writes it.
    artifacts
        What travels there; None is the usual for its kind.
    auto
        SEG and SR where the peer accepts them; the sender of results offers secondary
        captures and PDF where it does not.
    commitment
        Whether it is asked for storage commitment; None is as the settings say.
    authorization_file
        File with the value of the HTTP header Authorization.
    receiving_application, receiving_facility
        MSH-5 and MSH-6 of HL7 messages.
    """

    address: str
    name: str = ""
    artifacts: frozenset[ArtifactKind] | None = None
    auto: bool = False
    commitment: bool | None = None
    authorization_file: str | None = None
    receiving_application: str = ""
    receiving_facility: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules in force. Without any, the default rules decide."""

    rules: tuple[Rule, ...] = ()
    #: results per destination, by its address
    artifacts: Mapping[str, frozenset[ArtifactKind]]
    receivers: tuple[Receiver, ...] = ()

    @property
    def in_force(self) -> tuple[Rule, ...]:
        """Those of the file, or the default ones."""
        return self.rules or DEFAULT


#: without a file: fat-suppressed coronal images of hip or pelvis
DEFAULT = (
    Rule(name="derived", action=Action.IGNORE, conditions=(Derived(),)),
    Rule(
        name="hip-fat-suppressed",
        conditions=(Orientation(plane="coronal"), FatSuppressed(), BodyPart()),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One rule, tried on one series."""

    rule: Rule
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)

    def line(self) -> str:
        """What matched or what did not, without any value of the images."""
        name, action = self.rule.name, self.rule.action
        if self.holds:
            met = "; ".join(check.text for check in self.checks) or "no condition"
            return f"rule {name} ({action}) matched: {met}"
        failed = "; ".join(check.text for check in self.checks if not check.holds)
        held = sum(check.holds for check in self.checks)
        return f"rule {name} ({action}): not met: {failed} ({held} of {len(self.checks)} hold)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a series is scored and by which rule.

    ``explanation`` has one line per rule that was tried, and no value of the images: it is
    for the ledger. ``tried`` has those values: it is for the screen of who holds the images.
    """

    matched: bool
    rule: str
    explanation: tuple[str, ...] = ()
    tried: tuple[Trial, ...] = ()

    @property
    def nearness(self) -> int:
        """How many conditions held of the scoring rule that came nearest."""
        return max(
            (
                sum(check.holds for check in trial.checks)
                for trial in self.tried
                if trial.rule.action is Action.SCORE
            ),
            default=0,
        )


def decide(
    rules: Rules, header: Dataset, instances: Sequence[ReceivedInstance], came: Came
) -> Decision:
    """Decide about one complete series.

    Scouts are never scored, and the trial study of ``hipscore doctor`` always is, whatever
    the rules say.

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
    if not instances:
        return Decision(matched=False, rule="no_images")
    if all("LOCALIZER" in each.image_type for each in instances):
        return Decision(matched=False, rule="localizer", explanation=("all images are scouts",))
    if came.calling_aet == TRIAL_AET and _from_here(came.peer):
        return Decision(matched=True, rule=TRIAL)
    series = Offered(header=header, instances=tuple(instances), came=came)
    tried: list[Trial] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about what is judged here; it quotes values
        for rule in rules.in_force:
            checks = tuple(condition.check(series) for condition in rule.conditions)
            tried.append(Trial(rule=rule, checks=checks))
            if tried[-1].holds:
                break
    last = tried[-1]
    return Decision(
        matched=last.holds and last.rule.action is Action.SCORE,
        rule=last.rule.name if last.holds else NO_RULE,
        explanation=_lines(tried),
        tried=tuple(tried),
    )


def _from_here(address: str) -> bool:
    """Whether the sender is on this machine: nobody else's images may go nowhere."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def _lines(tried: Sequence[Trial]) -> tuple[str, ...]:
    """The last rules matter most: one of them decided."""
    lines = [trial.line() for trial in tried]
    if len(lines) <= _LINES:
        return tuple(lines)
    return (f"{len(lines) - _LINES} rules before did not match", *lines[-_LINES:])


def receiver(rules: Rules, destination: str) -> Receiver:
    """What the rules file says of a destination; of one that it does not name, the usual."""
    found = (each for each in rules.receivers if each.address == destination)
    return next(found, Receiver(address=destination))


def wanted(rules: Rules, destination: str) -> frozenset[ArtifactKind]:
    """The kinds of results that a destination gets, of series that are sent there at all."""
    usual = HL7_RESULTS if destination.startswith("mllp://") else DICOM_RESULTS
    return rules.artifacts.get(destination, usual)


def travels(
    rules: Rules,
    rule: str | None,
    destination: str,
    kind: ArtifactKind,
    *,
    came: Came | None = None,
) -> bool:
    """Whether results of this kind go to this destination, for a series matched by ``rule``.

    What was analysed without a rule (see :data:`ASKED_FOR`) goes where the rules send what
    comes the same way, ``came``: the report of one hospital is none of another's business.
    A retraction goes wherever a DICOM result does; of a trial nothing goes anywhere.
    """
    if rule == TRIAL:
        return False
    kinds = wanted(rules, destination)
    if kind is ArtifactKind.REJECTION:
        fits = not destination.startswith("mllp://") and bool(kinds)
    else:
        fits = kind in kinds
    return fits and _goes(rules, rule, destination, came)


def _goes(rules: Rules, rule: str | None, destination: str, came: Came | None) -> bool:
    scoring = [each for each in rules.in_force if each.action is Action.SCORE]
    concerned = [each for each in scoring if each.name == rule]
    if not concerned:  # asked for, or matched by a rule that is no more
        concerned = [each for each in scoring if came is None or each.takes_from(came)]
    if not concerned:  # nothing is said of this way: where nobody's results alone go
        return not any(destination in (each.destinations or ()) for each in scoring)
    return any(each.destinations is None or destination in each.destinations for each in concerned)


def built(rules: Rules, destinations: Iterable[str]) -> frozenset[ArtifactKind]:
    """Which kinds have to be built so that every destination gets what it wants.

    Secondary captures and HL7 messages only where somebody wants them; a destination that
    is ``auto`` may come to want captures.
    """
    extra: set[ArtifactKind] = set()
    for destination in destinations:
        extra |= wanted(rules, destination) & {ArtifactKind.SC, ArtifactKind.ORU}
        if receiver(rules, destination).auto:
            extra.add(ArtifactKind.SC)
    return ALWAYS_BUILT | extra
