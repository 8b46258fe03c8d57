"""Reported cases: phantoms sent through the real assembly and the real scoring."""

from __future__ import annotations

import copy
import gzip
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from hipscore import phantom, scoring
from hipscore.domain import (
    Channel,
    Findings,
    Hip,
    Masks,
    ModelCard,
    PlaneSpec,
    Remark,
    Side,
    Volume,
)
from hipscore.phantom import Burden
from hipscore.phantom.dicom import to_datasets
from hipscore.reporting import ReportContext
from hipscore.reporting.seg import build_seg
from hipscore.reporting.sr import build_sr
from hipscore.series import assemble

CARD = ModelCard(
    id="hip-unet",
    version="1.2.3",
    sha256="0123456789abcdef" * 4,
    localiser=PlaneSpec(rows=192, columns=192, pixel_mm=2.0, context=3),
    segmenter=PlaneSpec(rows=128, columns=128, pixel_mm=0.8, context=3),
)
CONTEXT = ReportContext(
    job_key="series/digest/bundle",
    created_at=datetime(2024, 1, 2, 13, 30, 15, 250000, tzinfo=UTC),
    software_version="0.1.0",
)
BOTH = (Side.RIGHT, Side.LEFT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the pipeline hands to the builders."""

    images: tuple[Dataset, ...]
    volume: Volume | None
    masks: tuple[Masks, ...]
    hips: tuple[Hip, ...]
    findings: Findings

    def seg(self, context: ReportContext = CONTEXT) -> Dataset | None:
        if self.volume is None:
            return None
        return build_seg(self.images, self.volume, self.masks, CARD, context)

    def sr(self, context: ReportContext = CONTEXT, *, comprehensive3d: bool = True) -> Dataset:
        return build_sr(
            self.images,
            self.volume,
            self.masks,
            self.findings,
            CARD,
            context,
            seg=self.seg(context),
            comprehensive3d=comprehensive3d,
        )


@cache
def _phantom(burden: Burden, sides: tuple[Side, ...]) -> phantom.Phantom:
    return phantom.synthesise(
        seed=7, burden=burden, hips=sides, rows=112, slices=18, supersampling=1
    )


def study(
    *,
    burden: Burden = Burden.MODERATE,
    sides: tuple[Side, ...] = BOTH,
    enhanced: bool = False,
    keep: Sequence[Channel] = tuple(Channel),
    **header: Any,
) -> Case:
    """A study with the truth of a phantom as masks; only the channels in ``keep`` are set."""
    made = _phantom(burden, sides)
    images = to_datasets(made, enhanced=enhanced, **header)
    if enhanced:
        _turn(images[0])
    series = assemble(images)
    masks = []
    for item in made.masks:
        voxels = item.voxels.copy()
        for channel in set(Channel) - set(keep):
            voxels[channel] = False
        masks.append(Masks(side=item.side, voxels=voxels))
    scored = [
        scoring.score_hip(series.volume, hip, item)
        for hip, item in zip(made.hips, masks, strict=True)
    ]
    return Case(
        images=series.images,
        volume=series.volume,
        masks=tuple(masks),
        hips=made.hips,
        findings=scoring.combine(scored),
    )


def _turn(image: Dataset) -> None:
    """Put the last frame of a multi-frame image first, in place: frames are not slices."""
    frames = image.pixel_array[::-1]
    image.PixelData = np.ascontiguousarray(frames).tobytes()
    groups = list(image.PerFrameFunctionalGroupsSequence)
    image.PerFrameFunctionalGroupsSequence = groups[::-1]


def declined(reason: Remark, images: Sequence[Dataset] | None = None) -> Case:
    """A series that did not make a volume."""
    return Case(
        images=tuple(images if images is not None else study().images),
        volume=None,
        masks=(),
        hips=(),
        findings=Findings(hips=(), reason=reason, unet_score=None),
    )


def stripped(images: Sequence[Dataset], *keywords: str) -> list[Dataset]:
    """Copies of the images without these elements."""
    result = []
    for image in images:
        bare = copy.deepcopy(image)
        for keyword in keywords:
            if keyword in bare:
                delattr(bare, keyword)
        result.append(bare)
    return result


def one_scored_of_two() -> Case:
    """Two located hips, the left of which shows too few slices of its head."""
    case = study()
    assert case.volume is not None
    left = case.masks[1].voxels.copy()
    middle = int(np.argmax(left[Channel.FEMORAL_HEAD].sum(axis=(1, 2))))
    left[:, : middle - 1] = False
    left[:, middle + 2 :] = False
    masks = (case.masks[0], Masks(side=Side.LEFT, voxels=left))
    hips = [
        scoring.score_hip(case.volume, hip, item)
        for hip, item in zip(case.hips, masks, strict=True)
    ]
    return Case(
        images=case.images,
        volume=case.volume,
        masks=masks,
        hips=case.hips,
        findings=scoring.combine(hips),
    )


TOO_FEW = Remark(code="too_few_slices", text="4 slices show ≥ 100 mm² of femoral head")
CASES: dict[str, Callable[[], Case]] = {
    "scored": study,
    "one hip in view": lambda: study(sides=(Side.LEFT,)),
    "one hip of two scored": one_scored_of_two,
    "clean": lambda: study(burden=Burden.NONE),
    "one segment": lambda: study(sides=(Side.RIGHT,), keep=(Channel.FEMORAL_HEAD,)),
    "enhanced": lambda: study(enhanced=True),
    "nothing segmented": lambda: study(keep=()),
    "not scorable": lambda: declined(TOO_FEW),
    "not scorable, enhanced": lambda: declined(TOO_FEW, study(enhanced=True).images),
}


@cache
def case(name: str) -> Case:
    """One of the cases above, made once."""
    return CASES[name]()


@cache
def report(name: str, *, comprehensive3d: bool = True) -> Dataset:
    """The SR of a case, built once; not to be changed."""
    return case(name).sr(comprehensive3d=comprehensive3d)


@cache
def segmentation(name: str) -> Dataset:
    """The SEG of a case, built once; not to be changed."""
    seg = case(name).seg()
    assert seg is not None
    return seg


# --- the tools of others --------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Verdict:
    errors: list[str]
    warnings: list[str]


def dciodvfy(data: bytes, folder: Path) -> Verdict:
    """What dicom3tools finds wrong with an object."""
    output = _run([_tool("dciodvfy"), str(_written(data, folder))]).stderr.splitlines()
    return Verdict(
        errors=[line for line in output if line.startswith("Error")],
        warnings=[line for line in output if line.startswith("Warning")],
    )


def dsrdump(data: bytes, folder: Path) -> str:
    """The content tree as DCMTK reads it, with codes and UIDs; fails on an invalid tree."""
    done = _run([_tool("dsrdump"), "+Pc", "+Pu", "+Pl", str(_written(data, folder))])
    assert done.returncode == 0, done.stderr
    return done.stdout


def dcmqi(tool: str, data: bytes, folder: Path, *options: str) -> Path:
    """Run one of dcmqi's readers; returns the folder it wrote to."""
    out = folder / "dcmqi"
    out.mkdir(exist_ok=True)
    filled = [option.replace("OUT", str(out)) for option in options]
    path = Path(sys.executable).parent / tool
    done = _run([str(path), "--inputDICOM", str(_written(data, folder)), *filled])
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def _written(data: bytes, folder: Path) -> Path:
    path = folder / "object.dcm"
    path.write_bytes(data)
    return path


def _tool(name: str) -> str:
    path = shutil.which(name)
    assert path is not None, f"{name} is not installed; `make setup-system` installs it"
    return path


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, timeout=60
    )


# --- looking into objects ---------------------------------------------------------------
def every_item(dataset: Dataset) -> Iterator[Dataset]:
    """The data set and all items nested in it."""
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from every_item(item)


def content(document: Dataset, meaning: str) -> list[Dataset]:
    """Content items of an SR whose concept name has this meaning."""
    return [
        item
        for item in every_item(document)
        if "ValueType" in item
        and "ConceptNameCodeSequence" in item
        and item.ConceptNameCodeSequence[0].CodeMeaning == meaning
    ]


def groups(document: Dataset) -> dict[str, Dataset]:
    """Measurement groups of an SR by their tracking identifier."""
    return {
        content(item, "Tracking Identifier")[0].TextValue: item
        for item in content(document, "Measurement Group")
    }


def number(group: Dataset, meaning: str) -> tuple[float, str]:
    """Value and unit of a measurement of a group."""
    [item] = content(group, meaning)
    [measured] = item.MeasuredValueSequence
    return float(measured.NumericValue), measured.MeasurementUnitsCodeSequence[0].CodeValue


def coded(group: Dataset, meaning: str) -> list[str]:
    """Code values of an evaluation of a group."""
    return [item.ConceptCodeSequence[0].CodeValue for item in content(group, meaning)]


def comments(group: Dataset) -> list[str]:
    return [item.TextValue for item in content(group, "Comment")]


def nrrd_count(path: Path) -> int:
    """Number of voxels that are not zero in a NRRD file."""
    header, _, body = path.read_bytes().partition(b"\n\n")
    fields = dict(re.findall(r"^([\w ]+): (.*)$", header.decode(), re.MULTILINE))
    raw = gzip.decompress(body) if fields["encoding"] == "gzip" else body
    kinds = {"unsigned char": np.uint8, "short": np.int16, "unsigned short": np.uint16}
    return int(np.count_nonzero(np.frombuffer(raw, dtype=kinds[fields["type"]])))
