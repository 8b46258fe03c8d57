"""Mutants by number: the same number is the same object, on every machine and every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from tests.fuzz import damage, lies, values
from tests.fuzz.draft import SOP_INSTANCE, Draft, Mutation
from tests.fuzz.encoding import Coding, Element
from tests.fuzz.sources import Source

#: every mutation by its name, in the order of the table
MUTATIONS: dict[str, Mutation] = {**damage.MUTATIONS, **values.MUTATIONS, **lies.MUTATIONS}
#: share of the objects that are changed in more than one way
_SEVERAL = 0.25
#: share of the objects made from phantoms, which come furthest
_OWN = 0.6
#: a name that must appear in no log
MARKER = "ZZMARKERZZ"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mutated object.

    ``how`` names the first mutation; ``syntax``, ``sop_class`` and ``sop_instance`` are what
    a sender would claim of it.
    """

    seed: int
    source: str
    how: str
    all_ways: tuple[str, ...] = field(repr=False)
    data_set: bytes = field(repr=False)
    syntax: str
    sop_class: str
    sop_instance: str

    @property
    def file(self) -> bytes:
        """The object in the DICOM File Format, as the listener writes it."""
        return as_file(self.data_set, self.syntax, self.sop_class, self.sop_instance)


def mutant(source: Source, seed: int, *, how: str | None = None) -> Mutant:
    """The mutant of this source with this number.

    Parameters
    ----------
    source
        What is mutated.
    seed
        The number; together with the source it determines every byte.
    how
        The mutation; drawn where not given.
    """
    rng = Random(f"{source.name}/{source.sop_instance}/{seed}/{how}")
    names = list(MUTATIONS)
    ways = [how or rng.choice(names)]
    if how is None and rng.random() < _SEVERAL:
        ways += rng.choices(names, k=rng.randint(1, 2))
    draft = Draft(rng=rng, source=source, parts=source.parts(), syntax=source.syntax)
    if draft.parts.elements:
        _name(draft, seed)
    for way in ways:
        MUTATIONS[way](draft)
    return Mutant(
        seed=seed,
        source=source.name,
        how=ways[0],
        all_ways=tuple(ways),
        data_set=draft.encoded(),
        syntax=draft.syntax,
        sop_class=source.sop_class,
        sop_instance=draft.sop_instance or source.sop_instance,
    )


def numbered(sources: Sequence[Source], number: int) -> Mutant:
    """The mutant with this number of a list of sources; most are of whole images of ours."""
    rng = Random(number)
    own = [each for each in sources if each.name.startswith(("phantom", "enhanced"))]
    return mutant(rng.choice(own if own and rng.random() < _OWN else sources), number)


def as_file(data_set: bytes, syntax: str, sop_class: str, sop_instance: str) -> bytes:
    """Part 10 bytes (PS3.10 7.1)."""
    texts = {2: sop_class, 3: sop_instance, 0x10: syntax, 0x12: "1.2.3"}
    elements = [Element(0x00020001, b"OB", b"\x00\x01")]
    for number, text in texts.items():
        value = text.encode() + b"\0" * (len(text) % 2)
        elements.append(Element(0x00020000 | number, b"UI", value))
    meta = b"".join(element.encoded(Coding()) for element in elements)
    length = Element(0x00020000, b"UL", len(meta).to_bytes(4, "little")).encoded(Coding())
    return bytes(128) + b"DICM" + length + meta + data_set


def _name(draft: Draft, seed: int) -> None:
    """Give the patient a name to look for, and the image a UID of its own."""
    draft.parts.put(0x00100010, b"PN", f"{MARKER}^PATIENT".encode())
    draft.parts.put(0x00100020, b"LO", f"{MARKER}-ID".encode())
    draft.sop_instance = f"{draft.source.sop_instance[:44].rstrip('.')}.{seed}"
    uid = draft.sop_instance.encode()
    draft.parts.put(SOP_INSTANCE, b"UI", uid + b"\0" * (len(uid) % 2))
