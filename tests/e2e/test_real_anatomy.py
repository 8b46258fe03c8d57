"""Real headers and anatomy through the whole service, validated with other people's tools.

The scans are not part of the project: they lie beside it in ``../shared/data`` where there
are any. One series runs always, all of them with ``make test-real``.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from pydicom import dcmread

from tests import real_scans, servers
from tests.e2e.conftest import Service, dciodvfy_errors, hipscore, result_schema

_SERIES = sorted(path.name.split(".")[0] for path in real_scans.PELVES.glob("series_*.tar.xz"))
_ALWAYS = ("series_09",)

pytestmark = pytest.mark.real_scans(real_scans.PELVES)


def _series() -> list[object]:
    """Name every series, those of the long run marked as such."""
    return [
        pytest.param(name, marks=[] if name in _ALWAYS else pytest.mark.long)
        for name in _SERIES or _ALWAYS
    ]


def _true_heads(name: str) -> dict[str, tuple[float, float, float]]:
    with real_scans.HEADS.open(encoding="utf-8") as stream:
        return {
            row["side"]: (float(row["x_mm"]), float(row["y_mm"]), float(row["z_mm"]))
            for row in csv.DictReader(stream)
            if row["series"] == name
        }


def _unpacked(name: str, folder: Path) -> list[Path]:
    subprocess.run(
        ["tar", "-xJf", str(real_scans.PELVES / f"{name}.tar.xz"), "-C", str(folder)], check=True
    )
    return sorted(path for path in folder.rglob("*.dcm"))


def _semi_real(name: str, folder: Path) -> list[Path]:
    from hiptrain.cli import main

    arguments = ["synthesise", "--source", str(real_scans.PELVES), "--heads", str(real_scans.HEADS)]
    arguments += ["--out", str(folder), "--seed", "11", "--series", name, "--new-study"]
    made = CliRunner().invoke(main, arguments)
    assert made.exit_code == 0, made.output
    return sorted(path for path in folder.rglob("*.dcm"))


def _prints(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", _series())
def test_semi_real_series_is_scored_and_its_reports_are_valid(
    service: Service, tmp_path: Path, name: str
) -> None:
    files = _semi_real(name, tmp_path / "images")
    study_uid = str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
    sent = service.storescu(files)
    assert sent.returncode == 0, sent.stderr
    result = service.wait(study_uid)
    stored = service.delivered(study_uid, 2)

    Draft202012Validator(result_schema()).validate(result)
    assert result["status"] == "scored", result["reason"]
    true = _true_heads(name)
    assert {hip["side"] for hip in result["hips"]} == set(true)
    for hip in result["hips"]:
        distance = float(np.linalg.norm(np.subtract(hip["centre_mm"], true[hip["side"]])))
        assert distance < 8.0, (hip["side"], distance)

    paths = {}
    for modality, data in stored.items():
        paths[modality] = tmp_path / f"{modality}.dcm"
        assert dciodvfy_errors(data, paths[modality]) == []
        assert dcmread(paths[modality]).StudyInstanceUID == study_uid
    tree = _prints(servers.program("dsrdump", package="dcmtk"), str(paths["SR"]))
    assert "UNet-score" in tree
    here = Path(sys.executable).parent
    (tmp_path / "dcmqi").mkdir()
    _prints(
        *(str(here / "segimage2itkimage"), "--inputDICOM", str(paths["SEG"])),
        *("--outputDirectory", str(tmp_path / "dcmqi"), "--mergeSegments"),
    )
    _prints(
        *(str(here / "tid1500reader"), "--inputDICOM", str(paths["SR"])),
        *("--outputMetadata", str(tmp_path / "tid1500.json")),
    )
    groups = json.loads((tmp_path / "tid1500.json").read_text("utf-8"))["Measurements"]
    assert groups

    offline = hipscore("score", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--json")
    assert offline.returncode == 0, offline.stderr
    (alone,) = json.loads(offline.stdout)
    assert alone["unet_score"] == result["unet_score"]
    assert alone["hips"] == result["hips"]


@pytest.mark.parametrize("name", _series())
def test_untouched_t1_series_is_declined(service: Service, tmp_path: Path, name: str) -> None:
    files = _unpacked(name, tmp_path)
    study_uid = str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
    assert service.storescu(files).returncode == 0
    result = service.wait(study_uid)
    assert result["status"] == "not_scorable"
    assert result["reason"]["code"] == "not_fat_suppressed"
    (report,) = service.delivered(study_uid, 1).values()
    assert dciodvfy_errors(report, tmp_path / "sr.dcm") == []
