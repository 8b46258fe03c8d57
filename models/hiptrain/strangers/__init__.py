"""Series without a hip: what the localiser must learn to refuse, and is tested with.

Drawn ones (:mod:`.limbs`, :mod:`.trunk`, :mod:`.others`) need nothing; ``phantom-*`` are
parts of the service's synthetic person, ``real-*`` parts of real T1 anatomies
(:mod:`.cuts`). All are coronal volumes as :mod:`hipscore.domain` describes them. The drawn
shapes have the sizes, places and contrasts of the organs, not their detail: refusing them
is necessary, not sufficient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hipscore.domain import Volume
from hiptrain.anatomy import Anatomy
from hiptrain.strangers import limbs, others, trunk
from hiptrain.strangers.cuts import PHANTOM_CUTS, REAL_CUTS, cut_anatomy, cut_phantom
from hiptrain.strangers.metal import cut_prosthesis

_DRAWN: dict[str, Callable[[np.random.Generator], Volume]] = {
    "knee": limbs.knee,
    "shoulder": limbs.shoulder,
    "wrist": limbs.wrist,
    "ankle": limbs.ankle,
    "thighs": limbs.thighs,
    "spine": trunk.spine,
    "abdomen": trunk.abdomen,
    "chest": trunk.chest,
    "breast": trunk.breast,
    "scrotum": trunk.scrotum,
    "bladder": trunk.bladder,
    "brain": others.brain,
    "orbits": others.orbits,
    "bottles": others.bottles,
    "inserts": others.inserts,
    "noise": others.empty,
    "uniform": others.uniform,
}
#: kinds that need a real pelvis
REAL_KINDS: tuple[str, ...] = (*REAL_CUTS, "real-prosthesis")
KINDS: tuple[str, ...] = (*_DRAWN, *PHANTOM_CUTS, *REAL_KINDS)


def make(kind: str, rng: np.random.Generator, *, anatomy: Anatomy | None = None) -> Volume:
    """Draw one series of a kind.

    Parameters
    ----------
    kind
        One of :data:`KINDS`.
    rng
        Everything drawn comes from it.
    anatomy
        The real pelvis that kinds in :data:`REAL_KINDS` are cut from.

    Returns
    -------
    Volume
        Slices anterior to posterior; no femoral head in it (see :mod:`.cuts` for the
        remains of one that are allowed).

    Raises
    ------
    ValueError
        If there is no such kind, or it needs an anatomy and has none.
    """
    if kind in _DRAWN:
        return _DRAWN[kind](rng)
    if kind in PHANTOM_CUTS:
        return cut_phantom(kind.removeprefix("phantom-"), rng)
    if kind not in REAL_KINDS:
        raise ValueError(f"there is no kind {kind!r}; there are {', '.join(KINDS)}")
    if anatomy is None:
        raise ValueError(f"the kind {kind} is cut from a real pelvis; give an anatomy")
    if kind == "real-prosthesis":
        return cut_prosthesis(anatomy, rng)
    return cut_anatomy(kind.removeprefix("real-"), anatomy, rng)


def cases(count: int, seed: int, *, anatomies: Sequence[Anatomy] = ()) -> list[tuple[str, Volume]]:
    """Draw series of all kinds in turn, each from its own stream of random numbers.

    Parameters
    ----------
    count
        How many; kinds that need a real pelvis are left out without ``anatomies``.
    seed
        The same seed and anatomies give the same series, however many are drawn.
    anatomies
        Real pelves, taken in turn.

    Returns
    -------
    list
        Names (``knee-0007``: the kind and the number of the series) and volumes.
    """
    return [case(number, seed, anatomies=anatomies) for number in range(count)]


def case(number: int, seed: int, *, anatomies: Sequence[Anatomy] = ()) -> tuple[str, Volume]:
    """The series with this number of :func:`cases`, alone: for parallel work."""
    kinds = KINDS if anatomies else tuple(kind for kind in KINDS if kind not in REAL_KINDS)
    turn, place = divmod(number, len(kinds))
    kind = kinds[place]
    anatomy = anatomies[(turn + place) % len(anatomies)] if anatomies else None
    rng = np.random.default_rng([seed, number])
    return f"{kind}-{number:04d}", make(kind, rng, anatomy=anatomy)
