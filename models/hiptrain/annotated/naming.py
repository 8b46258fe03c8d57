"""What labels mean: ``labels.toml``, the codes of a SEG, or the usual names.

::

    ignore = ["acetabulum", 9]        # labels without a meaning here
    head_includes_bme = false         # edema was cut out of the head's outline
    bme = [3, "edema"]                # of either hip: positions tell the side

    [femoral_head]
    right = [1, "Caput rechts"]
    left = [2, "Caput links"]

A number is the value of a label without a name; a label that has a name (in a SEG or a
segmentation of 3D Slicer) goes by it, so that one file serves both. Names are compared
without case; ``_``, ``-`` and spaces are the same.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hipscore.domain import Channel, Side
from hiptrain.annotated import Problem
from hiptrain.annotated.labels import Label, Meaning

STRUCTURES = {channel.name.lower(): channel for channel in Channel}
_BOTH = "both"
#: names that need no labels.toml, with "right" or "left" before or after them or without
_USUAL = {
    "femoral head": Channel.FEMORAL_HEAD,
    "head of femur": Channel.FEMORAL_HEAD,
    "bme": Channel.BME,
    "bone marrow edema": Channel.BME,
    "bone marrow oedema": Channel.BME,
    "synovitis": Channel.SYNOVITIS,
    "effusion": Channel.SYNOVITIS,
    "synovitis effusion": Channel.SYNOVITIS,
}
Key = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """Meaning of every label the user named; None for one to ignore.

    ``head_includes_bme`` is None where the user does not say.
    """

    meanings: Mapping[Key, Meaning | None] = field(default_factory=dict)
    head_includes_bme: bool | None = None

    def key_of(self, label: Label) -> Key | None:
        """The key in ``meanings`` that this label answers to: its name, else its value."""
        key: Key = plain(label.name) or label.value
        return key if key in self.meanings else None

    def meaning(self, label: Label) -> Meaning | None:
        """What a label means; None where it is to be ignored.

        Raises
        ------
        Problem
            If nobody says what it means.
        """
        key = self.key_of(label)
        if key is not None:
            return self.meanings[key]
        known = label.coded or usual(label.name)
        if known is None:
            raise Problem(
                f"label {label.title} is not known; say in labels.toml which structure it is, "
                "or list it under ignore"
            )
        return known


def plain(name: str) -> str:
    """A name as it is compared."""
    return " ".join(re.sub(r"[_\-/.,]+", " ", name).casefold().split())


def usual(name: str) -> Meaning | None:
    """The meaning of a usual name: ``Right femoral head``, ``bme_left``, ``synovitis``."""
    words = plain(name).split()
    sides = [side for side in Side if side.value in words]
    rest = " ".join(word for word in words if word not in {side.value for side in Side})
    if rest not in _USUAL or len(sides) > 1:
        return None
    return Meaning(structure=_USUAL[rest], side=sides[0] if sides else None)


def read_naming(path: Path | None) -> Naming:
    """Read ``labels.toml``.

    Raises
    ------
    Problem
        If it is no TOML, has an unknown key, or names a label twice.
    """
    if path is None:
        return Naming()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Problem(f"{path.name} is no TOML: {error}") from error
    includes = content.pop("head_includes_bme", None)
    if includes is not None and not isinstance(includes, bool):
        raise Problem(f"{path.name}: head_includes_bme is {includes!r}; write true or false")
    meanings: dict[Key, Meaning | None] = {}
    for key, meaning in _entries(path, content):
        if key in meanings:
            raise Problem(f"{path.name} names the label {key!r} twice")
        meanings[key] = meaning
    return Naming(meanings=meanings, head_includes_bme=includes)


def _entries(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[Key, Meaning | None]]:
    for name, value in content.items():
        if name == "ignore":
            yield from ((key, None) for key in _keys(path, name, value))
            continue
        if name not in STRUCTURES:
            allowed = ", ".join([*STRUCTURES, "ignore", "head_includes_bme"])
            raise Problem(f"{path.name} has the key {name!r}; it may have {allowed}")
        parts = value if isinstance(value, dict) else {_BOTH: value}
        for part, labels in parts.items():
            if part not in {_BOTH, *(side.value for side in Side)}:
                raise Problem(f"{path.name}: {name}.{part} is neither right, left nor both")
            side = None if part == _BOTH else Side(part)
            for key in _keys(path, f"{name}.{part}", labels):
                yield key, Meaning(structure=STRUCTURES[name], side=side)


def _keys(path: Path, where: str, value: Any) -> Iterator[Key]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise Problem(f"{path.name}: {where} lists {item!r}; a label is a number or a name")
        yield plain(item) if isinstance(item, str) else item
