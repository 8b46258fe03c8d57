"""Cross-validation of the networks by patient: the paper's comparison on other data.

Zheng et al. 2023 (Front Physiol 14:1132214) compare four networks and, for one of them, point
rendering, in five folds. Here every network is trained with and without point rendering on
the same folds, fairly and cheaply: a *trunk* without point rendering is trained for the first
part of the steps at a constant rate; then both variants begin with the trunk, one of them with
point rendering in place of its last layer, and take the same remaining steps in the same order
of pictures at a falling rate. Both have thus taken ``steps`` steps; what differs is the last
layer, new for point rendering, and its loss.

Nothing is chosen on a test fold: a variant is measured once, with its last averaged weights.

Shapes: pictures ``(N, C, H, W)``; structures are femoral head, BME, synovitis-effusion.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hiptrain import split as splitting
from hiptrain.checkpoint import versions
from hiptrain.dataset import CaseFile, Pictures, read_crops
from hiptrain.fit import Recipe, autocast, device_of, fit, logits_of, tensors
from hiptrain.networks import SEGMENTER_DESIGN, Design, Kind, restore_network
from hiptrain.specs import SEGMENTER

STRUCTURES = ("head", "bme", "synovitis", "lesion")
_PIXEL_MM2 = SEGMENTER.pixel_mm**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is compared, and how much each network is trained.

    ``share`` of the steps is the trunk's, common to both variants. ``variants`` says which
    last layers: ``False`` without, ``True`` with point rendering.
    """

    networks: tuple[Kind, ...]
    variants: tuple[bool, ...] = (False, True)
    folds: int = 5
    steps: int = 300
    share: float = 0.6
    batch: int = 16
    width: int = 16
    #: pictures are averaged over this many pixels a side: a cheaper look for a slow machine
    coarse: int = 1
    rate: float = 3e-3
    seed: int = 1
    device: Literal["auto", "cpu", "cuda"] = "cpu"

    def trunk_steps(self) -> int:
        return min(max(1, round(self.share * self.steps)), self.steps - 1)

    def design(self, network: Kind, *, point_rend: bool) -> Design:
        return replace(
            SEGMENTER_DESIGN,
            kind=network,
            width=self.width,
            point_rend=point_rend,
            points=SEGMENTER_DESIGN.points // self.coarse**2,
        )

    def recipe(self, fold: int, steps: int, schedule: Literal["cosine", "constant"]) -> Recipe:
        """The same for every network and both variants: same pictures in the same order."""
        return Recipe(
            task="segmenter",
            steps_per_epoch=steps,
            epochs=1,
            batch=self.batch,
            rate=self.rate,
            schedule=schedule,
            warm_up=min(60, max(1, steps // 4)),
            final=True,
            seed=1000 * self.seed + 2 * fold + (schedule == "cosine"),
            threads=1,
            device=self.device,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One network on one fold, and the variants that lack a result."""

    network: Kind
    fold: int
    variants: tuple[bool, ...]
    training: tuple[CaseFile, ...]
    tested: tuple[CaseFile, ...]
    #: by variant: what the result depends on
    made_by: tuple[dict[str, Any], ...]

    def steps(self, plan: Plan) -> int:
        return plan.trunk_steps() + len(self.variants) * (plan.steps - plan.trunk_steps())


def result_path(out: Path, network: str, fold: int, *, point_rend: bool) -> Path:
    """Where the result of one variant of a network on one fold is kept."""
    return out / f"{network}{'-pointrend' if point_rend else ''}-fold{fold + 1}.json"


def units(plan: Plan, cases: Sequence[CaseFile], out: Path) -> list[Unit]:
    """What is still to do, fold by fold.

    A result counts as done if its file says it was made by the same recipe from the same data.

    Raises
    ------
    ValueError
        If there are too few patients for the folds.
    """
    told = data_digest(cases)
    found = []
    for fold, tested in enumerate(splitting.folds(cases, plan.folds, plan.seed)):
        split = splitting.fold_split(cases, tested)
        for network in plan.networks:
            lacking, made_by = [], []
            for variant in plan.variants:
                own = _made_by(plan, network, fold, tested, told, point_rend=variant)
                if _is_done(result_path(out, network, fold, point_rend=variant), own):
                    continue
                lacking.append(variant)
                made_by.append(own)
            if lacking:
                found.append(
                    Unit(
                        network=network,
                        fold=fold,
                        variants=tuple(lacking),
                        training=split.training,
                        tested=split.validation,
                        made_by=tuple(made_by),
                    )
                )
    return found


def data_digest(cases: Sequence[CaseFile]) -> str:
    """SHA-256 of names, patients, kinds and the checksums inside the files: cheap, and enough."""
    told = [[case.name, case.patient, case.kind, _checksums(case.path)] for case in cases]
    return hashlib.sha256(json.dumps(sorted(told)).encode()).hexdigest()


def _checksums(path: Path) -> list[list[object]]:
    with zipfile.ZipFile(path) as archive:
        return [[entry.filename, entry.CRC] for entry in archive.infolist()]


def _made_by(
    plan: Plan, network: Kind, fold: int, tested: Sequence[str], told: str, *, point_rend: bool
) -> dict[str, Any]:
    trunk, whole = plan.trunk_steps(), plan.steps
    own: dict[str, Any] = {} if point_rend else {"last_layer": "of the trunk"}
    return own | {
        "design": plan.design(network, point_rend=point_rend).as_dict(),
        "coarse": plan.coarse,
        "trunk": plan.recipe(fold, trunk, "constant").as_dict(),
        "branch": plan.recipe(fold, whole - trunk, "cosine").as_dict(),
        "fold": fold,
        "test_patients": list(tested),
        "data": told,
    }


def _is_done(path: Path, made_by: Mapping[str, Any]) -> bool:
    if not path.exists():
        return False
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return bool(saved["made_by"] == made_by)


def run(
    plan: Plan,
    todo: Sequence[Unit],
    out: Path,
    *,
    jobs: int = 1,
    tell: Callable[[str], object] = lambda _: None,
    step_done: Callable[[int], object] = lambda _: None,
) -> None:
    """Train and measure what is to do, ``jobs`` units at a time, one thread each."""
    out.mkdir(parents=True, exist_ok=True)
    if jobs == 1:
        for unit in todo:
            tell(run_unit(plan, unit, out, step_done))
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_count_in, initargs=(counter,)
    ) as pool:
        futures = {pool.submit(_run_counting, plan, unit, out) for unit in todo}
        seen, waiting = 0, futures
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5)
                step_done(counter.value - seen)
                seen = counter.value
                for future in done:
                    tell(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_counter: Any = None


def _count_in(counter: Any) -> None:
    global _counter  # noqa: PLW0603 - a worker process has one, given at its start
    _counter = counter


def _count(steps: int) -> None:
    with _counter.get_lock():
        _counter.value += steps


def _run_counting(plan: Plan, unit: Unit, out: Path) -> str:
    return run_unit(plan, unit, out, _count)


@functools.lru_cache(maxsize=1)
def _training_pictures(cases: tuple[CaseFile, ...], coarse: int) -> Pictures:
    """Units come fold by fold, and share what they train on."""
    return coarsened(read_crops(cases), coarse)


def coarsened(pictures: Pictures, factor: int) -> Pictures:
    """Average pictures and truths over ``factor`` × ``factor`` pixels."""
    if factor == 1:
        return pictures

    def averaged(array: NDArray[Any]) -> NDArray[Any]:
        count, channels, height, width = array.shape
        blocks = (count, channels, height // factor, factor, width // factor, factor)
        mean = array.reshape(blocks).mean(axis=(3, 5), dtype=np.float32)
        return (np.rint(mean) if array.dtype == np.uint8 else mean).astype(array.dtype)

    return replace(pictures, inputs=averaged(pictures.inputs), truths=averaged(pictures.truths))


def run_unit(
    plan: Plan, unit: Unit, out: Path, step_done: Callable[[int], object] = lambda _: None
) -> str:
    """Train one network on one fold in all lacking variants, and write their results.

    Returns
    -------
    str
        The results in one line.
    """
    training = _training_pictures(unit.training, plan.coarse)
    tested = coarsened(read_crops(unit.tested), plan.coarse)
    splitting.refuse_leak(training.patients, tested.patients)
    work = out / "work" / f"{unit.network}-fold{unit.fold + 1}"
    # what an interrupted run left may be of another recipe
    shutil.rmtree(work, ignore_errors=True)
    trunk = _trained(plan, unit, work / "trunk", training, step_done, point_rend=False)
    body = {name: weight for name, weight in trunk["weights"].items() if name.startswith("body.")}
    told = []
    for variant, made_by in zip(unit.variants, unit.made_by, strict=True):
        # a new last layer is what point rendering is; the plain variant keeps the trunk's
        start = body if variant else trunk["weights"]
        saved = _trained(
            plan, unit, work / str(variant), training, step_done, point_rend=variant, start=start
        )
        network = restore_network(saved).to(device_of(plan.recipe(unit.fold, 1, "cosine")))
        hips = measure(network, tested, plan.batch, _PIXEL_MM2 * plan.coarse**2)
        result = {
            "network": unit.network,
            "point_rend": variant,
            "fold": unit.fold,
            "summary": summary(hips),
            "hips": hips,
            "training_pictures": len(training),
            "training_patients": len(set(training.patients)),
            "parameters": saved["about"]["parameters"],
            "versions": versions(),
            "training_seconds": round(trunk["seconds"] + saved["seconds"], 1),
            "made_by": made_by,
        }
        _write(result_path(out, unit.network, unit.fold, point_rend=variant), result)
        figures = ", ".join(f"{name} {result['summary'][name]}" for name in ("head", "lesion"))
        told.append(f"{network.design.title}: {figures}")
    shutil.rmtree(work)
    return f"fold {unit.fold + 1}, Dice: {'; '.join(told)}"


def _trained(
    plan: Plan,
    unit: Unit,
    folder: Path,
    training: Pictures,
    step_done: Callable[[int], object],
    *,
    point_rend: bool,
    start: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Checkpoint of the trunk, or with weights to ``start`` from of a variant."""
    trunk = plan.trunk_steps()
    recipe = (
        plan.recipe(unit.fold, trunk, "constant")
        if start is None
        else plan.recipe(unit.fold, plan.steps - trunk, "cosine")
    )
    design = plan.design(unit.network, point_rend=point_rend)
    best = fit(recipe, training, None, folder, design=design, start=start, step_done=step_done)
    return dict(torch.load(best, weights_only=True, map_location="cpu"))


def _write(path: Path, result: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.rename(path)


@torch.no_grad()
def measure(
    network: Any, pictures: Pictures, batch: int, pixel_mm2: float = _PIXEL_MM2
) -> list[dict[str, Any]]:
    """Dice of every hip over all its crops together, in their pixels.

    Returns
    -------
    list
        One entry a hip: ``patient``; Dice of ``head``, ``bme``, ``synovitis`` and ``lesion``
        (BME ∪ synovitis), ``None`` where the hip has no such structure; and
        ``false_lesion_mm2``, the mean area per crop of what was found as lesion in a hip
        without one (``None`` in a hip with one).
    """
    network.eval()
    device = next(network.parameters()).device
    numbers, rows = np.unique(pictures.hips, return_inverse=True)
    # (hips, structures, 3): pixels in both, found, true
    counts = np.zeros((len(numbers), len(STRUCTURES), 3))
    for start in range(0, len(pictures), batch):
        chosen = slice(start, start + batch)
        inputs, truth = tensors(pictures, chosen)
        with autocast(device):
            logits = logits_of(network, inputs.to(device))
        found, real = _with_lesion((logits > 0).cpu().numpy()), _with_lesion((truth > 0.5).numpy())
        each = np.stack([found & real, found, real], axis=-1).sum(axis=(2, 3))
        np.add.at(counts, rows[chosen], each)
    crops = np.bincount(rows)
    owners = [str(pictures.patients[rows == row][0]) for row in range(len(numbers))]
    return [
        _hip(owner, count, int(number), pixel_mm2)
        for owner, count, number in zip(owners, counts, crops, strict=True)
    ]


def _with_lesion(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``(B, 4, H, W)``: the three structures, and the union of the last two."""
    return np.concatenate([masks, masks[:, 1:2] | masks[:, 2:3]], axis=1)


def _hip(patient: str, counts: NDArray[np.float64], crops: int, pixel_mm2: float) -> dict[str, Any]:
    entry: dict[str, Any] = {"patient": patient}
    for name, (both, found, real) in zip(STRUCTURES, counts, strict=True):
        entry[name] = round(float(2 * both / (found + real)), 5) if real else None
    _, found, real = counts[-1]
    entry["false_lesion_mm2"] = None if real else round(float(found) * pixel_mm2 / crops, 3)
    return entry


def summary(hips: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over the hips that have a figure."""
    names = (*STRUCTURES, "false_lesion_mm2")
    held = {name: [hip[name] for hip in hips if hip[name] is not None] for name in names}
    return {
        name: round(float(np.mean(values)), 5) if values else None for name, values in held.items()
    }


def results(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """All results of a plan, network by network, variant by variant, fold by fold."""
    return [
        json.loads(result_path(out, network, fold, point_rend=variant).read_text(encoding="utf-8"))
        for network in plan.networks
        for variant in plan.variants
        for fold in range(plan.folds)
    ]


def described(plan: Plan, cases: Sequence[CaseFile]) -> dict[str, Any]:
    """The plan and the data, for the record and the footnotes."""
    kinds = sorted({case.kind for case in cases})
    return {
        "plan": asdict(plan),
        "folds": [list(each) for each in splitting.folds(cases, plan.folds, plan.seed)],
        "series": {kind: sum(case.kind == kind for case in cases) for kind in kinds},
        "data_sha256": data_digest(cases),
        "versions": versions(),
    }
