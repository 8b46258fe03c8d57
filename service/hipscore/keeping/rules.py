"""The rules file of the settings, read; and where results go, by settings and file together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hipscore import addresses
from hipscore.addresses import Destination, DicomWeb, Mllp, Peer
from hipscore.conditions import (
    Attribute,
    BodyPart,
    Condition,
    Derived,
    FatSuppressed,
    From,
    Not,
    Orientation,
    Several,
)
from hipscore.domain import ArtifactKind
from hipscore.keeping import rulesfile
from hipscore.keeping.patterns import compiled
from hipscore.keeping.rulesfile import (
    DestinationTable,
    FileTable,
    GroupTable,
    RulesError,
    RuleTable,
    TestTable,
)
from hipscore.routing import DICOM_RESULTS, HL7_RESULTS, Action, Receiver, Rule, Rules
from hipscore.settings import Settings

__all__ = ["RulesError", "destinations", "load_rules", "peers"]


def load_rules(settings: Settings) -> Rules:
    """Read the rules in force.

    Raises
    ------
    RulesError
        If the file is not what it should be: a ValueError, with the place in the message.
    """
    if settings.rules is None:
        return Rules(artifacts={})
    table = rulesfile.read(settings.rules)
    mistakes: list[str] = []
    receivers = tuple(_receivers(table, settings.rules, mistakes))
    if mistakes:
        raise RulesError(settings.rules, mistakes)
    known = {str(each): str(each) for each in settings.destinations}
    known |= {each.address: each.address for each in receivers}
    known |= {each.name: each.address for each in receivers}
    rules = tuple(_rule(each, known, mistakes) for each in table.rule)
    if mistakes:
        raise RulesError(settings.rules, mistakes)
    return Rules(
        rules=rules,
        artifacts={each.address: _kinds(each) for each in receivers},
        receivers=receivers,
    )


def destinations(settings: Settings, rules: Rules) -> tuple[Destination, ...]:
    """Every destination there is: those of the settings, then what the rules file adds."""
    named = [addresses.destination(each.address) for each in rules.receivers]
    return tuple({str(each): each for each in (*settings.destinations, *named)}.values())


def peers(settings: Settings, rules: Rules) -> tuple[Peer, ...]:
    """The DICOM peers among the destinations."""
    return tuple(each for each in destinations(settings, rules) if isinstance(each, Peer))


# --- destinations --------------------------------------------------------------------------


def _receivers(table: FileTable, path: Path, mistakes: list[str]) -> Iterator[Receiver]:
    seen: set[str] = set()
    for each in table.destination:
        where = f"destination {each.name!r}"
        try:
            address = addresses.destination(each.address)
        except ValueError as error:
            mistakes.append(f"{where}: address: {error}")
            continue
        if str(address) in seen:
            mistakes.append(f"{where}: address: {str(address)!r} has two tables; write one")
        seen.add(str(address))
        secret = _beside(path, each.authorization_file)
        mistakes += [f"{where}: {wrong}" for wrong in _unfit(each, address, secret)]
        yield Receiver(
            address=str(address),
            name=each.name,
            artifacts=each.kinds(),
            auto=each.artifacts == "auto",
            commitment=each.commitment,
            authorization_file=None if secret is None else str(secret),
            receiving_application=each.receiving_application,
            receiving_facility=each.receiving_facility,
        )


def _beside(path: Path, name: str | None) -> Path | None:
    """A file that the rules file names: beside it, unless its path is absolute."""
    return None if name is None else path.parent / Path(name).expanduser()


def _unfit(table: DestinationTable, address: Destination, secret: Path | None) -> Iterator[str]:
    """What a destination of this kind has no use for."""
    kinds, hl7 = table.kinds() or frozenset(), isinstance(address, Mllp)
    if hl7 and (table.artifacts == "auto" or kinds - HL7_RESULTS):
        yield "artifacts: an HL7 receiver takes ['oru'] and nothing else"
    if not hl7 and ArtifactKind.ORU in kinds:
        yield "artifacts: 'oru' goes to HL7 receivers (mllp://) only"
    if table.commitment and not isinstance(address, Peer):
        yield "commitment: only a DICOM peer (AET@HOST:PORT) can be asked for it"
    if not hl7 and (table.receiving_application or table.receiving_facility):
        yield "receiving_application, receiving_facility: for HL7 receivers (mllp://) only"
    if secret is not None and not isinstance(address, DicomWeb):
        yield "authorization_file: for DICOMweb services (https://) only"
    elif secret is not None and not secret.is_file():
        yield f"authorization_file: {str(secret)!r} is no file"


def _kinds(receiver: Receiver) -> frozenset[ArtifactKind]:
    if receiver.artifacts is not None:
        return receiver.artifacts
    return HL7_RESULTS if receiver.address.startswith("mllp://") else DICOM_RESULTS


# --- rules ---------------------------------------------------------------------------------


def _rule(table: RuleTable, known: dict[str, str], mistakes: list[str]) -> Rule:
    where = f"rule {table.name!r}: destinations"
    goes: set[str] = set()
    for name in table.destinations or ():
        if name in known:
            goes.add(known[name])
        else:
            names = ", ".join(known) or "none; add a [[destination]]"
            mistakes.append(f"{where}: {name!r} is no destination; known: {names}")
    if table.destinations is not None and table.action == "ignore":
        mistakes.append(f"{where}: nothing is sent of what is ignored; leave it out")
    return Rule(
        name=table.name,
        action=Action(table.action),
        conditions=tuple(_conditions(table)),
        destinations=None if table.destinations is None else frozenset(goes),
    )


def _conditions(table: RuleTable) -> Iterator[Condition]:
    origin = table.origin
    if origin is not None and (origin.calling or origin.called or origin.peer):
        yield From(calling=origin.calling, called=origin.called, peer=origin.peer)
    if table.orientation is not None:
        yield Orientation(plane=table.orientation)
    if table.fat_suppressed is not None:
        yield FatSuppressed(wanted=table.fat_suppressed)
    if table.body_part is not None:
        yield BodyPart()
    if table.derived is not None:
        yield Derived(wanted=table.derived)
    for group in table.include:
        yield _group(group)
    for group in table.exclude:
        yield Not(part=_group(group))


def _group(table: GroupTable) -> Condition:
    several = table.any or table.all
    if several is None:
        return _attribute(table)
    return _several(several, every=table.all is not None)


def _several(tables: Sequence[TestTable], *, every: bool) -> Condition:
    return Several(parts=tuple(map(_attribute, tables)), every=every)


def _attribute(table: TestTable | GroupTable) -> Attribute:
    one_of = table.any_of if table.equals is None else (table.equals,)
    pattern: re.Pattern[str] | None = None if table.regex is None else compiled(table.regex)
    return Attribute(
        path=tuple((table.attribute or "").split(".")),
        one_of=one_of,
        pattern=pattern,
        low=table.min,
        high=table.max,
        exists=table.exists,
    )
