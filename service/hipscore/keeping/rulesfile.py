"""What may stand in the rules file, as a schema, and each mistake in it as one line."""

from __future__ import annotations

import difflib
import ipaddress
import math
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from hipscore.addresses import ae_title
from hipscore.conditions import Network
from hipscore.domain import ArtifactKind
from hipscore.elements import tag_of
from hipscore.keeping.patterns import compiled
from hipscore.routing import RESERVED

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?"  # series.match_rule has 64 characters
#: what a destination may ask for
_ARTIFACTS = ("seg", "sr", "sc", "pdf", "oru")


class RulesError(ValueError):
    """The rules file is not what it should be; one line per mistake in ``mistakes``."""

    def __init__(self, path: Path, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(f"{path}: {each}" for each in mistakes)
        super().__init__("; ".join(self.mistakes))


def _several(value: object) -> object:
    """One value stands for a list of one."""
    return value if isinstance(value, list) else [value]


def _title(value: object) -> object:
    return ae_title(value) if isinstance(value, str) else value


def _network(value: object) -> object:
    try:
        return ipaddress.ip_network(value, strict=False) if isinstance(value, str) else value
    except ValueError as error:
        msg = "write an address or a network such as 10.0.0.0/24"
        raise ValueError(msg) from error


def _scalar(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        msg = "write a text or a number"
        raise ValueError(msg)  # noqa: TRY004 - pydantic makes a mistake of the file of it
    return value.strip() if isinstance(value, str) else f"{value:.15g}"


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        msg = "write a number, without quotes"
        raise ValueError(msg)
    return float(value)


def _attribute(value: object) -> object:
    for part in value.split(".") if isinstance(value, str) else ():
        if tag_of(part) is None:
            msg = "no DICOM keyword; write one such as SeriesDescription, or (gggg,eeee)"
            raise ValueError(msg)
    return value


def _pattern(value: object) -> object:
    if isinstance(value, str):
        compiled(value)
    return value


Title = Annotated[str, BeforeValidator(_title)]
Peer = Annotated[Network, BeforeValidator(_network)]
Scalar = Annotated[str, BeforeValidator(_scalar)]
Number = Annotated[float, BeforeValidator(_number)]
Name = Annotated[str, Field(pattern=rf"^{_NAME}$")]


class Table(BaseModel):
    """A table of the file: what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class FromTable(Table):
    calling: Annotated[tuple[Title, ...], BeforeValidator(_several)] = ()
    called: Annotated[tuple[Title, ...], BeforeValidator(_several)] = ()
    peer: Annotated[tuple[Peer, ...], BeforeValidator(_several)] = ()


class TestTable(Table):
    """An attribute and what is asked of it."""

    attribute: Annotated[str, BeforeValidator(_attribute)]
    equals: Scalar | None = None
    any_of: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = None
    regex: Annotated[str, BeforeValidator(_pattern)] | None = None
    min: Number | None = None
    max: Number | None = None
    exists: Annotated[bool, Field(strict=True)] | None = None


class GroupTable(Table):
    """One entry of include or exclude: an attribute, or several of them."""

    attribute: Annotated[str, BeforeValidator(_attribute)] | None = None
    equals: Scalar | None = None
    any_of: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = None
    regex: Annotated[str, BeforeValidator(_pattern)] | None = None
    min: Number | None = None
    max: Number | None = None
    exists: Annotated[bool, Field(strict=True)] | None = None
    any: Annotated[tuple[TestTable, ...], Field(min_length=1)] | None = None
    all: Annotated[tuple[TestTable, ...], Field(min_length=1)] | None = None


class RuleTable(Table):
    name: Name
    action: Literal["score", "ignore"] = "score"
    origin: FromTable | None = Field(None, alias="from")
    orientation: Literal["coronal", "axial", "sagittal"] | None = None
    fat_suppressed: Annotated[bool, Field(strict=True)] | None = None
    body_part: Literal["hip"] | None = None
    derived: Annotated[bool, Field(strict=True)] | None = None
    include: tuple[GroupTable, ...] = ()
    exclude: tuple[GroupTable, ...] = ()
    destinations: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


class DestinationTable(Table):
    name: Name
    address: str
    artifacts: (
        Literal["auto"]
        | Annotated[
            tuple[Literal["seg", "sr", "sc", "pdf", "oru"], ...], Field(min_length=1)
        ]
    ) | None = None  # fmt: skip
    commitment: Annotated[bool, Field(strict=True)] | None = None
    authorization_file: str | None = None
    receiving_application: Annotated[str, Field(max_length=180)] = ""  # HL7 v2.5.1, MSH-5: HD
    receiving_facility: Annotated[str, Field(max_length=180)] = ""

    def kinds(self) -> frozenset[ArtifactKind] | None:
        """What it asked for by name; None where it did not."""
        if self.artifacts is None or isinstance(self.artifacts, str):
            return None
        return frozenset(ArtifactKind(each) for each in self.artifacts)


class FileTable(Table):
    rule: tuple[RuleTable, ...] = ()
    destination: tuple[DestinationTable, ...] = ()


def read(path: Path) -> FileTable:
    """Read the file and check all of it that does not need the settings.

    Raises
    ------
    RulesError
        With one line per mistake: where, what, and what is allowed.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RulesError(path, [f"cannot be read: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        raise RulesError(path, ["is no text in UTF-8"]) from error
    except tomllib.TOMLDecodeError as error:
        raise RulesError(path, [f"is no TOML: {error}"]) from error
    try:
        made = FileTable.model_validate(content)
    except ValidationError as error:
        raise RulesError(path, _lines(error, content)) from error
    mistakes = [*_twice(made), *_reserved(made), *_groups(made)]
    if mistakes:
        raise RulesError(path, mistakes)
    return made


def _twice(made: FileTable) -> list[str]:
    found = []
    for what, tables in (("rule", made.rule), ("destination", made.destination)):
        names = [each.name for each in tables]
        found += [
            f"{what} {name!r}: the name is given {names.count(name)} times, and must be once"
            for name in sorted({each for each in names if names.count(each) > 1})
        ]
    return found


def _reserved(made: FileTable) -> list[str]:
    return [
        f"rule {rule.name!r}: name: this one is ours; call it something else"
        for rule in made.rule
        if rule.name in RESERVED
    ]


def _groups(made: FileTable) -> list[str]:
    """Entries of include and exclude have one attribute with a test, or one list of them."""
    return [
        f"rule {rule.name!r}: {key} {number}: {wrong}"
        for rule in made.rule
        for key, groups in (("include", rule.include), ("exclude", rule.exclude))
        for number, group in enumerate(groups, start=1)
        for wrong in _wrong(group)
    ]


def _wrong(group: GroupTable) -> Iterator[str]:
    forms = (group.attribute, group.any, group.all)
    if sum(form is not None for form in forms) != 1:
        yield "needs one of attribute, any, all"
        return
    if group.attribute is None and _tests(group):
        yield "a test belongs to an attribute, not beside any or all"
    tests: Sequence[TestTable | GroupTable] = group.any or group.all or (group,)
    for test in tests:
        if not _tests(test):
            yield f"{test.attribute}: needs a test: equals, any_of, regex, min, max or exists"
        if test.equals is not None and test.any_of is not None:
            yield f"{test.attribute}: equals or any_of, not both"


def _tests(table: TestTable | GroupTable) -> int:
    names = ("equals", "any_of", "regex", "min", "max", "exists")
    return sum(getattr(table, name) is not None for name in names)


# --- mistakes ------------------------------------------------------------------------------

_TABLES: dict[str, type[Table]] = {
    "rule": RuleTable,
    "destination": DestinationTable,
    "from": FromTable,
    "include": GroupTable,
    "exclude": GroupTable,
    "any": TestTable,
    "all": TestTable,
}


def _lines(error: ValidationError, content: dict[str, Any]) -> list[str]:
    """One line per key: a value that may have several forms is wrong once."""
    lines: dict[str, str] = {}
    errors = error.errors(include_url=False)
    for each in errors:
        loc = each["loc"]
        inside = any(other["loc"][: len(loc)] == loc != other["loc"] for other in errors)
        if each["type"] == "too_short" and inside:
            continue  # only because what is wrong in it does not count
        whole = loc[: loc.index("artifacts") + 1] if "artifacts" in loc else loc
        where = _where(whole, content)
        lines.setdefault(where, f"{where}: {_what(each)}")
    return list(lines.values())


def _where(loc: Sequence[str | int], content: dict[str, Any]) -> str:
    """The place of a mistake in the words of the file: rule 'x': include 2: min."""
    parts: list[str] = []
    at: Any = content
    for number, key in enumerate(loc):
        try:
            at = at[key]
        except (KeyError, IndexError, TypeError):
            at = None
        if isinstance(key, int):
            name = at.get("name") if isinstance(at, dict) and number == 1 else None
            parts[-1] += f" {name!r}" if isinstance(name, str) else f" {key + 1}"
        else:
            parts.append(str(key))
    return ": ".join(parts)


def _what(each: ErrorDetails) -> str:
    kind, value = each["type"], each["input"]
    if kind == "extra_forbidden":
        return _unknown(each["loc"])
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return f"{_shown(value)}: {each['ctx']['error']}"
    return f"{_shown(value)} is not allowed; {_allowed(each)}"


def _allowed(each: ErrorDetails) -> str:
    kind = each["type"]
    if "artifacts" in each["loc"]:
        return f"write 'auto' or a list of {', '.join(map(repr, _ARTIFACTS))}"
    if kind == "literal_error":
        return f"write {each['ctx']['expected']}"
    if kind == "string_pattern_mismatch":
        return "a name has up to 64 letters, digits, dots, - and _"
    if kind in {"too_short", "tuple_type"}:
        return "write a list of at least one"
    if kind == "model_type":
        return "write a table"
    return each["msg"].lower()


def _unknown(loc: Sequence[str | int]) -> str:
    words = [each for each in loc[:-1] if isinstance(each, str) and each in _TABLES]
    table = _TABLES[words[-1]] if words else FileTable
    known = [field.alias or name for name, field in table.model_fields.items()]
    near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.6)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"unknown key; {guess}allowed: {', '.join(known)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
