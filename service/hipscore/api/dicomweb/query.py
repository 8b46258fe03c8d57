"""The query of a search: matching keys, fields, and paging (PS3.18 8.3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hipscore.procedure import matching
from hipscore.procedure.dataset import Malformed
from hipscore.procedure.matching import Key

USUAL_LIMIT = 100
LARGEST_LIMIT = 1000
LARGEST_OFFSET = 10**9
MOST_KEYS = 32
_IGNORED = {"accept", "charset", "accept-charset"}


class Asked(NamedTuple):
    """A search as it was asked for. ``fields`` None: all of them."""

    keys: list[Key]
    fields: list[tuple[str, ...]] | None
    limit: int
    offset: int
    fuzzy: bool


def parse(query: Sequence[tuple[str, str]]) -> Asked:
    """Read the parameters of a search.

    Raises
    ------
    Malformed
        Naming the parameter that cannot be understood.
    """
    if len(query) > MOST_KEYS:
        msg = f"a query has at most {MOST_KEYS} parameters"
        raise Malformed(msg)
    keys: list[Key] = []
    fields: list[str] = []
    numbers = {"limit": USUAL_LIMIT, "offset": 0}
    fuzzy = False
    for name, text in query:
        if name in numbers:
            numbers[name] = _number(name, text)
        elif name == "includefield":
            fields += [each for each in text.split(",") if each]
        elif name == "fuzzymatching":
            fuzzy = _flag(name, text)
        elif name.lower() not in _IGNORED:
            keys.append(matching.key(name, text))
    if len({key.path for key in keys}) < len(keys):
        msg = "an attribute is asked for twice"
        raise Malformed(msg)
    everything = "all" in fields
    paths = None if everything else [matching.path_of(each) for each in fields]
    return Asked(
        keys=keys,
        fields=None if paths is None else [*paths, *(key.path for key in keys)],
        limit=min(numbers["limit"], LARGEST_LIMIT),
        offset=numbers["offset"],
        fuzzy=fuzzy,
    )


def filter_keys(text: str) -> list[tuple[str, str]]:
    """The keys of a filter, ``attribute=value`` joined by commas (PS3.18 11.10.1.2).

    A comma belongs to the value where no ``attribute=`` follows.

    Raises
    ------
    Malformed
        If it is no such thing.
    """
    keys: list[tuple[str, str]] = []
    for part in text.split(","):
        name, found, wanted = part.partition("=")
        if found:
            keys.append((name.strip(), wanted))
        elif keys:
            keys[-1] = (keys[-1][0], f"{keys[-1][1]},{part}")
        else:
            msg = "a filter is attribute=value, joined by commas"
            raise Malformed(msg)
    if len(keys) > MOST_KEYS:
        msg = f"a filter has at most {MOST_KEYS} keys"
        raise Malformed(msg)
    for each in keys:
        matching.key(*each)
    return keys


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 10 or int(text) > LARGEST_OFFSET:
        msg = f"{name} is a whole number up to {LARGEST_OFFSET}"
        raise Malformed(msg)
    return int(text)


def _flag(name: str, text: str) -> bool:
    if text not in {"true", "false"}:
        msg = f"{name} is true or false"
        raise Malformed(msg)
    return text == "true"


def _parameter(name: str, words: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    shown = {"name": name, "in": "query", "required": False, "description": words}
    return {**shown, "schema": schema, **more}


#: the parameters as OpenAPI shows them
PARAMETERS: list[dict[str, Any]] = [
    _parameter(
        "attributes",
        "matching keys: keyword or tag, dots into sequences, as in "
        "`ScheduledStationNameCodeSequence.CodeValue=HIPSCORE`; `*` and `?` are wild cards, "
        "`20261101-20261130` a range of dates",
        {"type": "object", "additionalProperties": {"type": "string"}},
        style="form",
        explode=True,
    ),
    _parameter("includefield", "attributes to return, or `all`", {"type": "string"}),
    _parameter("fuzzymatching", "not supported: matching is literal", {"type": "boolean"}),
    _parameter("limit", f"at most {LARGEST_LIMIT}", {"type": "integer", "minimum": 0}),
    _parameter("offset", "how many to skip", {"type": "integer", "minimum": 0}),
]
