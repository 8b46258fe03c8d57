"""The training set: semi-real series and phantoms, cut into the networks' pictures.

Pictures are cut by :mod:`hipscore.hips`, the code that cuts them in the service. One
file per series (``<name>.npz``) holds

``planes`` (Z, H, W) float16, normalised, and ``plane_masks`` (Z, 2, H, W) uint8, right
and left head, 255 = inside; ``slice_mm`` says how far apart;
``crops`` (N, C, H, W) float16 and ``crop_masks`` (N, K, H, W) uint8 of both hips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hipscore import hips, phantom
from hipscore.domain import Hip, Masks, Side, Volume
from hipscore.phantom import Burden
from hiptrain.anatomy import Anatomy, Bend, deform, find_series, load, read_heads, sphere_of
from hiptrain.specs import LOCALISER, MARGIN_MM, SEGMENTER
from hiptrain.synthesise import Options, semireal

_SIDES = (Side.RIGHT, Side.LEFT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to make of what. ``draws`` and ``plain`` count series per anatomy."""

    draws: int = 20
    plain: int = 2
    phantoms: int = 40
    strangers: int = 30
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One file of the training set."""

    name: str
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
            kind=kind,
            draw=draw,
            seed=(plan.seed, number, draw, kind == "plain"),
            source=found[name],
        )
        for kind, count in (("semireal", plan.draws), ("plain", plan.plain))
        for draw in range(count)
        for number, name in enumerate(names)
    ]
    for kind, count in (("phantom", plan.phantoms), ("stranger", plan.strangers)):
        jobs += [
            Job(name=f"{kind}-{draw:03d}", kind=kind, draw=draw, seed=(plan.seed, 999, draw))
            for draw in range(count)
        ]
    order = np.random.default_rng(plan.seed).permutation(len(jobs))
    return [jobs[index] for index in order]


def build(
    jobs: Sequence[Job],
    heads_file: Path,
    out: Path,
    *,
    workers: int,
    done: Callable[[int], object] = lambda _: None,
) -> None:
    """Make the files that are not there yet; ``done(1)`` is called after each."""
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        for _ in pool.map(partial(_make, heads_file=heads_file, out=out), jobs):
            done(1)


def _make(job: Job, *, heads_file: Path, out: Path) -> None:
    target = out / f"{job.name}.npz"
    if target.exists():
        return
    rng = np.random.default_rng(job.seed)
    volume, masks = _MAKERS[job.kind](job, heads_file, rng)
    arrays = (
        {"planes": np.zeros(0)}
        if job.kind == "semireal" and job.draw % 2
        else planes_of(volume, masks)
    )
    if job.kind in {"semireal", "phantom"} and masks:
        arrays |= crops_of(volume, masks, rng)
    partial_file = target.with_suffix(".part.npz")
    np.savez(partial_file, allow_pickle=False, **arrays)
    partial_file.rename(target)


_anatomies: dict[Path, Anatomy] = {}


def _anatomy(job: Job, heads_file: Path) -> Anatomy:
    assert job.source is not None  # noqa: S101 - plan_jobs gives these kinds a source
    if job.source not in _anatomies:
        _anatomies[job.source] = load(job.source, read_heads(heads_file))[1]
    return _anatomies[job.source]


def _make_semireal(
    job: Job, heads_file: Path, rng: np.random.Generator
) -> tuple[Volume, tuple[Masks, ...]]:
    bend = Bend() if rng.random() < 0.8 else None
    made = semireal(_anatomy(job, heads_file), rng, Options(bend=bend))
    return made.volume, made.masks


def _make_plain(
    job: Job, heads_file: Path, rng: np.random.Generator
) -> tuple[Volume, tuple[Masks, ...]]:
    """The T1 image itself, bent: finding hips must not depend on the contrast."""
    anatomy = _anatomy(job, heads_file)
    masks = []
    for hip, head in zip(anatomy.hips, anatomy.heads, strict=True):
        voxels = np.zeros((3, *head.shape), dtype=np.bool_)
        voxels[0] = head
        masks.append(Masks(side=hip.side, voxels=voxels))
    return deform(anatomy.volume, masks, rng, Bend())


def _make_phantom(
    job: Job, _heads_file: Path, rng: np.random.Generator
) -> tuple[Volume, tuple[Masks, ...]]:
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


def _make_stranger(
    job: Job, _heads_file: Path, rng: np.random.Generator
) -> tuple[Volume, tuple[Masks, ...]]:
    """A brain: no hip in it."""
    made = phantom.synthesise(
        seed=50_000 + 1000 * job.seed[0] + job.draw,
        anatomy="brain",
        rows=256,
        pixel_mm=float(rng.uniform(0.8, 1.3)),
        slice_mm=float(rng.uniform(3.0, 6.0)),
        supersampling=1,
    )
    return made.volume, ()


_MAKERS = {
    "semireal": _make_semireal,
    "plain": _make_plain,
    "phantom": _make_phantom,
    "stranger": _make_stranger,
}


def planes_of(volume: Volume, masks: Sequence[Masks]) -> dict[str, NDArray[np.generic]]:
    """Pictures of the localiser, with the heads' sections as their truth."""
    stack = hips.localiser_planes(volume, LOCALISER)
    middle = LOCALISER.context // 2
    truth = np.zeros((len(stack.planes), 2, LOCALISER.rows, LOCALISER.columns), dtype=np.uint8)
    for item in masks:
        head = item.voxels[0].astype(np.float32)
        truth[:, _SIDES.index(item.side)] = np.rint(stack.sampling.pictures(head) * 255)
    return {
        "planes": stack.planes[:, middle].astype(np.float16),
        "plane_masks": truth,
        "slice_mm": np.array(volume.grid.spacing_mm[0]),
    }


def crops_of(
    volume: Volume, masks: Sequence[Masks], rng: np.random.Generator
) -> dict[str, NDArray[np.generic]]:
    """Pictures of the segmenter around hips located with the localiser's inaccuracy."""
    pictures, truth = [], []
    for item in masks:
        if not item.voxels[0].any():
            continue
        hip = jittered(sphere_of(item, volume.grid), rng)
        crop = hips.frame(volume.grid, hip, SEGMENTER, MARGIN_MM)
        pictures.append(hips.crops(volume, crop).astype(np.float16))
        channels = [hips.sample(each.astype(np.float32), crop) for each in item.voxels]
        truth.append(np.rint(np.stack(channels, axis=1) * 255).astype(np.uint8))
    if not pictures:
        return {}
    return {"crops": np.concatenate(pictures), "crop_masks": np.concatenate(truth)}


def jittered(hip: Hip, rng: np.random.Generator) -> Hip:
    """A hip located with an error of a few mm."""
    x, y, z = np.asarray(hip.centre_mm) + rng.normal(0.0, 3.0, 3)
    return Hip(
        side=hip.side,
        centre_mm=(float(x), float(y), float(z)),
        radius_mm=hip.radius_mm * float(rng.uniform(0.92, 1.08)),
        confidence=1.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Inputs ``(N, C, H, W)`` float16 and truths ``(N, K, H, W)`` uint8 (255 = inside)."""

    inputs: NDArray[np.float16]
    truths: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.inputs)

    def shows_something(self) -> NDArray[np.bool_]:
        """Which pictures have a structure in them, ``(N,)``."""
        return self.truths.reshape(len(self.truths), -1).max(axis=1) > 127


def read_crops(folder: Path) -> Pictures:
    """Load all pictures of the segmenter."""
    inputs, truths = [], []
    for arrays in _files(folder):
        if "crops" in arrays:
            inputs.append(arrays["crops"])
            truths.append(arrays["crop_masks"])
    return Pictures(inputs=np.concatenate(inputs), truths=np.concatenate(truths))


def read_planes(folder: Path) -> Pictures:
    """Load all pictures of the localiser."""
    inputs, truths = [], []
    for arrays in _files(folder):
        if arrays["planes"].size:
            planes = arrays["planes"].astype(np.float16, copy=False)
            inputs.append(with_context(planes, float(arrays["slice_mm"])))
            truths.append(arrays["plane_masks"])
    return Pictures(inputs=np.concatenate(inputs), truths=np.concatenate(truths))


def with_context(planes: NDArray[np.float16], slice_mm: float) -> NDArray[np.float16]:
    """Pictures ``(Z, C, H, W)`` of planes ``(Z, H, W)``, neighbours as the service takes them."""
    step = max(1, round(hips.CONTEXT_MM / slice_mm))
    half = LOCALISER.context // 2
    index = np.arange(len(planes))[:, None] + step * np.arange(-half, half + 1)
    return planes[np.clip(index, 0, len(planes) - 1)]


def _files(folder: Path) -> Iterator[dict[str, NDArray[np.generic]]]:
    paths = sorted(path for path in folder.glob("*.npz") if ".part" not in path.name)
    if not paths:
        raise ValueError(f"{folder} holds no training set; make one with 'hiptrain fit'")
    for path in paths:
        with np.load(path) as arrays:
            yield dict(arrays)
