"""Data sets as folders of NumPy files: the pictures both networks learn from.

One file a series (``<name>.npz``), and ``set.json`` with what made them. Arrays of a file,
all optional but ``about``:

``about``
    JSON text: ``name``, ``patient``, ``kind`` (one of :data:`KINDS`).
``planes``, ``plane_masks``, ``slice_mm``
    ``(Z, H, W)`` float16 pictures of the localiser, ``(Z, 2, H, W)`` uint8 sections of the
    right and the left head (255 = inside), and the slice distance in mm.
``crops``, ``crop_masks``, ``crop_hips``
    ``(N, C, H, W)`` float16 pictures of the segmenter, ``(N, K, H, W)`` uint8 structures
    (K as :class:`hipscore.domain.Channel`), and ``(N,)`` the number of the hip in the series.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hipscore import hips
from hipscore.domain import Hip, Masks, Side, Volume
from hiptrain.anatomy import sphere_of
from hiptrain.specs import LOCALISER, MARGIN_MM, SEGMENTER

#: real anatomy in STIR-like contrast | T1 as it is | phantom | no hip | users' own
KINDS = ("semireal", "plain", "phantom", "stranger", "annotated")
_SIDES = (Side.RIGHT, Side.LEFT)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFile:
    """One series of a data set. Series of one patient never train and test each other."""

    path: Path
    name: str
    patient: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Inputs ``(N, C, H, W)`` float16 and truths ``(N, K, H, W)`` uint8 (255 = inside).

    ``patients`` ``(N,)`` names whose picture each is, ``hips`` ``(N,)`` numbers the hip (for
    the localiser: the series) through all cases.
    """

    inputs: NDArray[np.float16]
    truths: NDArray[np.uint8]
    patients: NDArray[np.str_]
    hips: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.inputs)

    def shows_something(self) -> NDArray[np.bool_]:
        """Which pictures have a structure in them, ``(N,)``."""
        return self.truths.reshape(len(self.truths), -1).max(axis=1) > 127


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
    pictures, truth, numbers = [], [], []
    for number, item in enumerate(masks):
        if not item.voxels[0].any():
            continue
        hip = jittered(sphere_of(item, volume.grid), rng)
        crop = hips.frame(volume.grid, hip, SEGMENTER, MARGIN_MM)
        pictures.append(hips.crops(volume, crop).astype(np.float16))
        channels = [hips.sample(each.astype(np.float32), crop) for each in item.voxels]
        truth.append(np.rint(np.stack(channels, axis=1) * 255).astype(np.uint8))
        numbers.append(np.full(len(pictures[-1]), number))
    if not pictures:
        return {}
    return {
        "crops": np.concatenate(pictures),
        "crop_masks": np.concatenate(truth),
        "crop_hips": np.concatenate(numbers),
    }


def jittered(hip: Hip, rng: np.random.Generator) -> Hip:
    """A hip located with an error of a few mm."""
    x, y, z = np.asarray(hip.centre_mm) + rng.normal(0.0, 2.0, 3)
    return Hip(
        side=hip.side,
        centre_mm=(float(x), float(y), float(z)),
        radius_mm=hip.radius_mm * float(rng.uniform(0.92, 1.08)),
        confidence=1.0,
    )


def save_case(
    path: Path, about: Mapping[str, object], arrays: Mapping[str, NDArray[np.generic]]
) -> None:
    """Write one series: all of it or nothing. ``about`` has ``name``, ``patient``, ``kind``."""
    if about.get("kind") not in KINDS or not about.get("name") or not about.get("patient"):
        raise ValueError(f"a case needs name, patient and a kind of {', '.join(KINDS)}: {about}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        np.savez(stream, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
    part.rename(path)


def list_cases(folders: Iterable[Path]) -> list[CaseFile]:
    """The series of one or several data sets, by name.

    Raises
    ------
    ValueError
        If a folder holds none, or a file is not of a data set.
    """
    cases = []
    for folder in folders:
        paths = sorted(folder.glob("*.npz"))
        if not paths:
            raise ValueError(
                f"{folder} holds no data set; make one with 'hiptrain prepare' or "
                "'hiptrain annotated'"
            )
        cases += [_case(path) for path in paths]
    return cases


def _case(path: Path) -> CaseFile:
    try:
        with np.load(path) as arrays:
            about = json.loads(str(arrays["about"]))
        return CaseFile(path=path, name=about["name"], patient=about["patient"], kind=about["kind"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a file of a data set ({error})") from error


def read_set(folder: Path) -> dict[str, Any]:
    """What made a data set: the content of its ``set.json``; empty where there is none."""
    path = folder / "set.json"
    content: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return content


def read_crops(cases: Sequence[CaseFile]) -> Pictures:
    """Load all pictures of the segmenter."""
    return _gathered(cases, _crops, "crops of hips")


def read_planes(cases: Sequence[CaseFile]) -> Pictures:
    """Load all pictures of the localiser."""
    return _gathered(cases, _planes, "whole slices")


def _gathered(cases: Sequence[CaseFile], read: Any, what: str) -> Pictures:
    inputs, truths, patients, numbers = [], [], [], []
    count = 0
    for case in cases:
        with np.load(case.path) as arrays:
            found = read(arrays)
        if found is None:
            continue
        pictures, truth, own = found
        inputs.append(pictures)
        truths.append(truth)
        patients.append(np.full(len(pictures), case.patient))
        numbers.append(own + count)
        count += int(own.max()) + 1
    if not inputs:
        raise ValueError(f"none of the {len(cases)} series has {what}")
    return Pictures(
        inputs=np.concatenate(inputs),
        truths=np.concatenate(truths),
        patients=np.concatenate(patients),
        hips=np.concatenate(numbers).astype(np.int64),
    )


def _crops(arrays: Any) -> tuple[Any, Any, Any] | None:
    if "crops" not in arrays:
        return None
    return arrays["crops"], arrays["crop_masks"], arrays["crop_hips"]


def _planes(arrays: Any) -> tuple[Any, Any, Any] | None:
    if "planes" not in arrays:
        return None
    planes = arrays["planes"]
    pictures = with_context(planes, float(arrays["slice_mm"]))
    return pictures, arrays["plane_masks"], np.zeros(len(planes), dtype=np.int64)


def with_context(planes: NDArray[np.float16], slice_mm: float) -> NDArray[np.float16]:
    """Pictures ``(Z, C, H, W)`` of planes ``(Z, H, W)``, neighbours as the service takes them."""
    step = max(1, round(hips.CONTEXT_MM / slice_mm))
    half = LOCALISER.context // 2
    index = np.arange(len(planes))[:, None] + step * np.arange(-half, half + 1)
    return planes[np.clip(index, 0, len(planes) - 1)]
