"""docs/training.md, from annotated DICOM and SEG to a bundle in use: run as it is written.

The commands are read from the guide. Only their size is changed: a few small steps instead
of a training. What is judged is the way, not the networks.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import hipscore.reporting
from hipscore import phantom, pipeline
from hipscore.domain import ArtifactKind
from hipscore.phantom import Burden
from hipscore.phantom.dicom import to_datasets
from hipscore.reporting import ReportContext
from tests.analytic import Oracle

GUIDE = Path(__file__).parents[3] / "docs" / "training.md"
SECTION = "## From annotated series to a bundle"
#: how a documented training becomes a test
SMALL = {
    "--epochs": "1",
    "--steps": "2",
    "--batch": "2",
    "--width": "8",
    "--threads": "1",
    "--device": "cpu",
}
#: what runs until it is stopped
SERVICE = ["hipscore", "up"]


def section() -> str:
    whole = GUIDE.read_text(encoding="utf-8")
    assert whole.count(SECTION) == 1
    return re.split(r"(?m)^## ", whole.split(SECTION)[1])[0]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", section(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def annotate(folder: Path) -> None:
    """Lay out what the guide asks for: its cases.csv, with a phantom for every patient."""
    [table] = re.findall(r"```csv\n(.*?)```", section(), re.DOTALL)
    folder.mkdir()
    (folder / "cases.csv").write_text(table)
    header, *lines = table.splitlines()
    assert header == "patient,image,labels"
    for seed, line in enumerate(lines):
        _, image, labels = line.split(",")
        made = phantom.synthesise(
            seed=seed, burden=list(Burden)[seed % 4], rows=96, slices=16, supersampling=1
        )
        images = to_datasets(made)
        oracle = Oracle()
        oracle.learn(made, images)
        analysis = pipeline.analyse(images, oracle)
        context = ReportContext(
            job_key=line, created_at=datetime(2024, 1, 2, tzinfo=UTC), software_version="1"
        )
        artifacts = pipeline.report(analysis, oracle.card, context=context)
        [seg] = [item for item in artifacts if item.kind is ArtifactKind.SEG]
        write(images, folder / image)
        (folder / labels).write_bytes(seg.data)


def write(images: Sequence[Any], folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)


def smaller(words: list[str]) -> list[str]:
    """The same command; a training with the sizes of :data:`SMALL`."""
    if words[:2] != ["hiptrain", "fit"]:
        return words
    rest = iter(words)
    kept = list(_without_sizes(rest))
    return [*kept, *(part for pair in SMALL.items() for part in pair)]


def _without_sizes(words: Iterator[str]) -> Iterator[str]:
    for word in words:
        if word in SMALL:
            next(words)
        else:
            yield word


def run(words: list[str]) -> str:
    """Run one command line as a user does; it must succeed. Returns its standard output."""
    script = Path(sys.executable).with_name(words[0])
    done = subprocess.run([script, *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(900)
def test_the_guide_leads_from_annotations_to_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    annotate(tmp_path / "annotated")
    write(
        to_datasets(phantom.synthesise(seed=99, rows=96, slices=16, supersampling=1)),
        tmp_path / "incoming",
    )
    printed = {}
    for words in commands():
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            monkeypatch.setenv(name, value.replace("$PWD", os.fspath(tmp_path)))
        elif words[: len(SERVICE)] != SERVICE:
            printed[" ".join(words[:2])] = run(smaller(words))
    assert list(printed) == [
        "hiptrain annotated",
        "hiptrain fit",
        "hiptrain export",
        "hipscore bundle",
        "hipscore score",
    ]
    assert "4 cases of 4 patients; 8 hips with a femoral head" in printed["hiptrain annotated"]
    assert len(list((tmp_path / "data/ours/pictures").glob("*.png"))) == 4

    described = json.loads((tmp_path / "bundles/ours/bundle.json").read_text())
    assert described["id"] == "hip-ours"
    assert "sha256" in printed["hipscore bundle"]

    [path] = (tmp_path / "results").glob("*/result.json")
    result = json.loads(path.read_text())
    schema = Path(hipscore.reporting.__file__).with_name("result.schema.json")
    jsonschema.validate(result, json.loads(schema.read_text()))
    assert result["model"]["id"] == "hip-ours"
    assert result["model"]["version"] == "0.1.0"
    assert result["status"] in {"scored", "not_scorable"}
    # the patient held out in the guide is on record as such, and did not train
    recorded = json.loads((tmp_path / "runs/ours/run.json").read_text())
    for network in ("localiser", "segmenter"):
        pictures = recorded["networks"][network]["about"]["pictures"]
        assert pictures["training"]["patients"] == ["p01", "p02", "p03"]
        assert pictures["validation"]["patients"] == ["p04"]
    assert (tmp_path / "bundles/ours/CARD.md").read_text().startswith("# Our hips")
