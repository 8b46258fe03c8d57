"""Make the data set of the shipped bundle: semi-real series, T1, phantoms, series without hips."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hipscore import phantom
from hipscore.domain import Masks, Side, Volume
from hipscore.phantom import Burden
from hiptrain import strangers
from hiptrain.anatomy import Anatomy, Bend, deform, find_series, load, read_heads
from hiptrain.dataset import crops_of, planes_of, save_case
from hiptrain.synthesise import Options, semireal

_SIDES = (Side.RIGHT, Side.LEFT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to make of what. ``draws`` and ``plain`` count series per anatomy.

    ``rough`` is the share of semi-real series with a rough scanner and another protocol,
    ``whole`` says that every n-th semi-real series is pictured for the localiser, too.
    """

    draws: int = 24
    plain: int = 4
    phantoms: int = 60
    strangers: int = 160
    rough: float = 0.65
    whole: int = 2
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One file of the data set."""

    name: str
    patient: str
    kind: str
    draw: int
    seed: tuple[int, ...]
    source: Path | None = None


def plan_jobs(source: Path, names: Sequence[str], plan: Plan) -> list[Job]:
    """The files to make, in an order that mixes kinds."""
    found = find_series(source)
    missing = sorted(set(names) - set(found))
    if missing:
        raise ValueError(f"{source} lacks the series {', '.join(missing)}")
    jobs = [
        Job(
            name=f"{kind}-{name}-{draw:03d}",
            patient=name,
            kind=kind,
            draw=draw,
            seed=(plan.seed, number, draw, kind == "plain"),
            source=found[name],
        )
        for kind, count in (("semireal", plan.draws), ("plain", plan.plain))
        for draw in range(count)
        for number, name in enumerate(names)
    ]
    jobs += [
        Job(
            name=f"phantom-{draw:03d}",
            patient=f"phantom-{plan.seed}-{draw:03d}",
            kind="phantom",
            draw=draw,
            seed=(plan.seed, 999, draw),
        )
        for draw in range(plan.phantoms)
    ]
    jobs += [_stranger_job(found, names, plan, draw) for draw in range(plan.strangers)]
    order = np.random.default_rng(plan.seed).permutation(len(jobs))
    return [jobs[index] for index in order]


def _stranger_job(found: dict[str, Path], names: Sequence[str], plan: Plan, draw: int) -> Job:
    """A series without a hip; what is cut from a real pelvis counts as that patient's."""
    kinds = strangers.KINDS
    kind = kinds[draw % len(kinds)]
    name = names[draw // len(kinds) % len(names)] if kind in strangers.REAL_KINDS else None
    return Job(
        name=f"stranger-{kind}-{draw:03d}",
        patient=name or f"stranger-{plan.seed}-{draw:03d}",
        kind="stranger",
        draw=draw,
        seed=(plan.seed, 777, draw),
        source=found[name] if name else None,
    )


def prepare(
    jobs: Sequence[Job],
    heads_file: Path,
    out: Path,
    plan: Plan,
    *,
    workers: int,
    done: Callable[[int], object] = lambda _: None,
) -> None:
    """Make the files that are not there yet; ``done(1)`` is called after each."""
    out.mkdir(parents=True, exist_ok=True)
    _refuse_other(jobs, out, plan)
    make = partial(_make, heads_file=heads_file, out=out, plan=plan)
    with ProcessPoolExecutor(workers) as pool:
        for _ in pool.map(make, jobs):
            done(1)
    about = {
        "made_by": "hiptrain prepare",
        "plan": asdict(plan),
        "anatomies": sorted({job.patient for job in jobs if job.kind == "semireal"}),
        "series": len(jobs),
    }
    (out / "set.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _refuse_other(jobs: Sequence[Job], out: Path, plan: Plan) -> None:
    """Go on only with what was begun: another plan, or files it does not make, are refused."""
    begun = out / "plan.json"
    own = json.dumps([asdict(plan), sorted(job.name for job in jobs)])
    if begun.exists() and begun.read_text(encoding="utf-8") != own:
        raise ValueError(f"{out} was begun with other options: repeat them, or take another --out")
    strays = {path.stem for path in out.glob("*.npz")} - {job.name for job in jobs}
    if strays:
        raise ValueError(f"{out} holds series that this plan does not make ({min(strays)})")
    begun.write_text(own, encoding="utf-8")


def _make(job: Job, *, heads_file: Path, out: Path, plan: Plan) -> None:
    target = out / f"{job.name}.npz"
    if target.exists():
        return
    rng = np.random.default_rng(job.seed)
    volume, masks = _MAKERS[job.kind](job, heads_file, rng, plan)
    arrays: dict[str, NDArray[np.generic]] = {}
    if job.kind != "semireal" or job.draw % plan.whole == 0:
        arrays |= planes_of(volume, masks)
    if job.kind in {"semireal", "phantom"} and masks:
        arrays |= crops_of(volume, masks, rng)
    save_case(target, {"name": job.name, "patient": job.patient, "kind": job.kind}, arrays)


_anatomies: dict[Path, Anatomy] = {}


def _anatomy(job: Job, heads_file: Path) -> Anatomy:
    assert job.source is not None  # noqa: S101 - plan_jobs gives these kinds a source
    if job.source not in _anatomies:
        _anatomies[job.source] = load(job.source, read_heads(heads_file))[1]
    return _anatomies[job.source]


_Made = tuple[Volume, tuple[Masks, ...]]


def _make_semireal(job: Job, heads_file: Path, rng: np.random.Generator, plan: Plan) -> _Made:
    options = Options(
        bend=Bend() if rng.random() < 0.8 else None, rough=rng.random() < plan.rough, fat=None
    )
    made = semireal(_anatomy(job, heads_file), rng, options)
    return made.volume, made.masks


def _make_plain(job: Job, heads_file: Path, rng: np.random.Generator, _plan: Plan) -> _Made:
    """The T1 image itself, bent: finding hips must not depend on the contrast."""
    anatomy = _anatomy(job, heads_file)
    masks = []
    for hip, head in zip(anatomy.hips, anatomy.heads, strict=True):
        voxels = np.zeros((3, *head.shape), dtype=np.bool_)
        voxels[0] = head
        masks.append(Masks(side=hip.side, voxels=voxels))
    return deform(anatomy.volume, masks, rng, Bend())


def _make_phantom(job: Job, _heads_file: Path, rng: np.random.Generator, _plan: Plan) -> _Made:
    sides = _SIDES if rng.random() < 0.75 else (_SIDES[int(rng.integers(2))],)
    rows = int(rng.choice([256, 320, 384]))
    made = phantom.synthesise(
        seed=10_000 + 1000 * job.seed[0] + job.draw,
        burden=Burden(rng.choice([item.value for item in Burden])),
        hips=sides,
        rows=rows,
        slice_mm=float(rng.uniform(3.0, 5.0)),
        gap_mm=float(rng.uniform(0.0, 1.2)),
        slices=int(rng.integers(18, 27)),
        tilt_deg=(float(rng.normal(0, 4)), float(rng.normal(0, 4))),
        supersampling=2,
    )
    return made.volume, made.masks


def _make_stranger(job: Job, heads_file: Path, rng: np.random.Generator, _plan: Plan) -> _Made:
    kind = strangers.KINDS[job.draw % len(strangers.KINDS)]
    anatomy = _anatomy(job, heads_file) if job.source is not None else None
    return strangers.make(kind, rng, anatomy=anatomy), ()


_MAKERS = {
    "semireal": _make_semireal,
    "plain": _make_plain,
    "phantom": _make_phantom,
    "stranger": _make_stranger,
}
