"""Every network on the same folds by patient, measured by hip, in tables and a picture."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from hiptrain import crossval, crossval_report
from hiptrain.cli.crossval import crossval as command
from hiptrain.dataset import Pictures, list_cases
from hiptrain.specs import SEGMENTER
from tests.models.torch.factories import write_set

KINDS = {"p1": "semireal", "p2": "semireal", "p3": "annotated", "p4": "annotated", "f1": "phantom"}
PLAN = crossval.Plan(networks=("unet", "hrnet"), folds=2, steps=4, batch=2, width=8)
NAMES = {
    f"{network}{point}-fold{fold}.json"
    for network in ("unet", "hrnet")
    for point in ("", "-pointrend")
    for fold in (1, 2)
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"), KINDS, each=2)


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small cross-validation, run once for several tests."""
    out = tmp_path_factory.mktemp("crossval")
    cases = list_cases([data])
    steps: list[int] = []
    told: list[str] = []
    todo = crossval.units(PLAN, cases, out)
    crossval.run(PLAN, todo, out, tell=told.append, step_done=steps.append)
    assert sum(steps) == sum(unit.steps(PLAN) for unit in todo) == 2 * 2 * (2 + 2 + 2)
    assert len(told) == 4
    assert told[0].startswith("fold 1, Dice: U-Net: head ")
    return out


def results(out: Path) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in out.glob("*-fold*.json")}


def test_every_network_is_tested_on_the_same_patients(done: Path) -> None:
    found = results(done)
    assert set(found) == NAMES
    for fold in (0, 1):
        tested = [
            {hip["patient"] for hip in each["hips"]}
            for each in found.values()
            if each["fold"] == fold
        ]
        assert len(tested) == 4
        assert all(each == tested[0] for each in tested)
        assert "f1" not in tested[0]
    first, second = (
        {hip["patient"] for hip in found[f"unet-fold{fold}.json"]["hips"]} for fold in (1, 2)
    )
    assert not first & second
    assert first | second == set(KINDS) - {"f1"}


def test_both_variants_take_the_same_steps_from_the_same_body(done: Path) -> None:
    plain, refined = (
        results(done)[f"unet{point}-fold1.json"]["made_by"] for point in ("", "-pointrend")
    )
    assert (plain["design"].pop("point_rend"), refined["design"].pop("point_rend")) == (False, True)
    assert plain == refined
    assert plain["trunk"]["steps_per_epoch"] + plain["branch"]["steps_per_epoch"] == PLAN.steps
    assert (plain["trunk"]["schedule"], plain["branch"]["schedule"]) == ("constant", "cosine")
    assert plain["branch"]["final"]


def test_nothing_is_done_twice_and_what_is_missing_again(
    done: Path, data: Path, tmp_path: Path
) -> None:
    cases = list_cases([data])
    out = tmp_path / "copy"
    shutil.copytree(done, out)
    assert crossval.units(PLAN, cases, out) == []
    lost = out / "hrnet-pointrend-fold2.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    [unit] = crossval.units(PLAN, cases, out)
    assert (unit.network, unit.fold, unit.variants) == ("hrnet", 1, (True,))
    # what an interrupted run of another recipe left behind does not matter
    (out / "work" / "hrnet-fold2" / "trunk").mkdir(parents=True)
    (out / "work" / "hrnet-fold2" / "trunk" / "segmenter.last.pt").write_bytes(b"half")
    crossval.run(PLAN, [unit], out)
    after = json.loads(lost.read_text())
    # one thread, same seeds: the same network again
    assert after["hips"] == before["hips"]


@pytest.mark.parametrize(
    "changes",
    ({"steps": 6}, {"width": 4}, {"batch": 3}, {"seed": 2}, {"rate": 1e-3}, {"coarse": 2}),
)
def test_another_recipe_is_made_anew(done: Path, data: Path, changes: dict[str, Any]) -> None:
    plan = dataclasses.replace(PLAN, **changes)
    assert len(crossval.units(plan, list_cases([data]), done)) == 4


def test_other_data_is_measured_anew(done: Path, tmp_path: Path) -> None:
    other = write_set(tmp_path / "other", KINDS | {"f2": "phantom"}, each=2)
    assert len(crossval.units(PLAN, list_cases([other]), done)) == 4


# -- figures against arithmetic -------------------------------------------------------------


class Says(torch.nn.Module):
    """A network that finds what the first three slices of its picture show."""

    design = PLAN.design("unet", point_rend=False)

    def __init__(self) -> None:
        super().__init__()
        self.idle = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures[:, :3] - 0.5


def test_dice_of_a_hip_pools_its_crops() -> None:
    found = np.zeros((4, 5, 16, 16), dtype=np.float16)
    truths = np.zeros((4, 3, 16, 16), dtype=np.uint8)
    # hip 0, two crops: 4 + 2 found, 4 + 6 true, 4 + 2 in both
    truths[0, 0, 0, :4] = truths[1, 0, 0, :6] = 255
    found[0, 0, 0, :4] = found[1, 0, 0, :2] = 1
    # oedema 3 found of 3, synovitis 2 true missed; the union counts a shared pixel once
    truths[0, 1, 2, :3] = truths[0, 2, 2, 2:4] = 255
    found[0, 1, 2, :3] = 1
    # hip 7 of another patient: no lesion, but 5 pixels of it found in one of two crops
    truths[2, 0, 0, :4] = found[2, 0, 0, 2:6] = 255
    found[3, 2, 5, :5] = 1
    pictures = Pictures(
        inputs=found,
        truths=truths,
        patients=np.array(["a", "a", "b", "b"]),
        hips=np.array([0, 0, 7, 7]),
    )
    for batch in (1, 3, 8):
        first, second = crossval.measure(Says(), pictures, batch)
        assert first == {
            "patient": "a",
            "head": pytest.approx(2 * 6 / 16, abs=1e-5),
            "bme": 1.0,
            "synovitis": 0.0,
            "lesion": pytest.approx(2 * 3 / 7, abs=1e-5),
            "false_lesion_mm2": None,
        }
        assert second["patient"] == "b"
        assert second["head"] == 0.5
        assert second["lesion"] is None
        area = 5 * SEGMENTER.pixel_mm**2 / 2
        assert second["false_lesion_mm2"] == pytest.approx(area, abs=1e-3)
    means = crossval.summary([first, second])
    assert means["head"] == pytest.approx((0.75 + 0.5) / 2)
    assert means["lesion"] == first["lesion"]
    assert crossval.summary([second])["lesion"] is None


def test_a_coarser_look_averages_pictures_and_truth() -> None:
    inputs = np.arange(2 * 3 * 4 * 4, dtype=np.float16).reshape(2, 3, 4, 4)
    truths = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    truths[1, 2, :2, :1] = 255
    pictures = Pictures(
        inputs=inputs, truths=truths, patients=np.array(["a", "b"]), hips=np.array([0, 1])
    )
    half = crossval.coarsened(pictures, 2)
    assert half.inputs.dtype == np.float16
    assert half.truths.dtype == np.uint8
    assert half.inputs[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert half.truths[1, 2].tolist() == [[128, 0], [0, 0]]
    assert crossval.coarsened(pictures, 1) is pictures
    # the head that refines looks at the same share of the picture
    plan = dataclasses.replace(PLAN, coarse=2)
    full, coarse = (each.design("unet", point_rend=True).points for each in (PLAN, plan))
    assert coarse * 4 == full


def hip(patient: str, head: float, lesion: float | None) -> dict[str, Any]:
    return {"patient": patient, "head": head, "lesion": lesion, "false_lesion_mm2": None}


def result(network: str, fold: int, *hips: Mapping[str, Any]) -> dict[str, Any]:
    entry = {"head": 0.0, "lesion": 0.0, "false_lesion_mm2": None}
    for name in ("head", "lesion"):
        entry[name] = float(np.mean([each[name] for each in hips if each[name] is not None]))
    return {
        "network": network,
        "point_rend": False,
        "fold": fold,
        "hips": list(hips),
        "summary": entry,
    }


def test_the_tables_say_what_the_results_say() -> None:
    plan = dataclasses.replace(PLAN, variants=(False,), networks=("unet", "unetpp"))
    found = [
        result("unet", 1, hip("c", 0.90, 0.5), hip("d", 0.92, 0.4)),
        result("unet", 0, hip("a", 0.80, 0.6), hip("a", 0.90, None), hip("b", 0.94, 0.7)),
        result("unetpp", 0, hip("a", 0.81, 0.8), hip("a", 0.91, None), hip("b", 0.95, 0.9)),
        result("unetpp", 1, hip("c", 0.91, 0.7), hip("d", 0.93, 0.6)),
    ]
    cost = {"network": "unet", "point_rend": False, "crops": 20, "parameters": 1_234_567}
    report = {
        "results": found,
        "series": {"semireal": 8, "phantom": 3},
        "folds": [["a", "b"], ["c", "d"]],
        "cost": [cost | {"milliseconds": 123.4, "runtime": "ONNX Runtime"}],
    }
    networks, folds, tests, size = crossval_report.tables(plan, report)
    assert networks.header == (
        "network",
        "femoral head, plain",
        "lesion, plain",
        "false mm², plain",
    )
    # folds 0.88 and 0.91; 0.65 and 0.45
    assert networks.rows[0] == ("U-Net", "0.895 ± 0.021", "0.550 ± 0.141", "–")
    assert "4 patients in 2 folds by patient" in networks.note
    assert "synthetic contrast and lesions" in networks.note
    assert "For research, not for clinical decisions" in networks.note
    assert folds.rows[0][:3] == ("1", "0.880", "0.650")
    assert folds.rows[1][:3] == ("2", "0.910", "0.450")
    assert folds.rows[2][0] == "mean ± SD"
    assert tests.rows[0][:4] == ("UNet++", "plain", "femoral head", "+0.010")
    # four differences of one sign: Wilcoxon's exact p is 2 / 2**4
    assert [row[5] for row in tests.rows] == ["0.125", "0.125"]
    assert size.rows[0] == ("U-Net", "plain", "1.23 M", "123", "ONNX Runtime")
    assert "20 crops" in size.note


def test_a_patient_counts_once_however_many_hips() -> None:
    found = [result("unet", 0, hip("a", 0.8, None), hip("a", 0.9, 0.5), hip("b", 0.4, None))]
    means = crossval_report.patient_means(found, "unet", "head", point_rend=False)
    assert means == {"a": pytest.approx(0.85), "b": 0.4}
    assert crossval_report.patient_means(found, "unet", "lesion", point_rend=False) == {"a": 0.5}


# -- the command ----------------------------------------------------------------------------


def invoke(data: Path, out: Path, *more: object) -> Result:
    small = ("--folds", 2, "--steps", 4, "--batch", 2, "--width", 8, "--jobs", 1)
    return CliRunner().invoke(
        command, [*map(str, ("--data", data, "--out", out, *small)), *map(str, more)]
    )


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_command_prints_the_tables_and_times_the_networks(
    done: Path, data: Path, tmp_path: Path
) -> None:
    """One variant, so that one export is enough; its results are there already."""
    out = tmp_path / "copy"
    shutil.copytree(done, out)
    report = tmp_path / "results.md"
    arguments = ("--networks", "unet", "--point-rend", "without", "--markdown", report)
    first = invoke(data, out, *arguments)
    assert first.exit_code == 0, first.output
    assert "Dice per fold, without PointRend" in first.stdout
    assert (out / "crossval.png").stat().st_size > 5000
    written = json.loads((out / "crossval.json").read_text())
    assert {each["network"] for each in written["results"]} == {"unet"}
    [cost] = written["cost"]
    assert cost["milliseconds"] > 0
    assert "| network | femoral head, plain |" in report.read_text()
    # again: nothing is trained or timed, and the JSON goes to stdout alone
    again = invoke(data, out, "--json", *arguments)
    assert json.loads(again.stdout) == written


def test_two_processes_give_what_one_gives(done: Path, data: Path, tmp_path: Path) -> None:
    cases = list_cases([data])
    plan = dataclasses.replace(PLAN, networks=("unet",), variants=(False,))
    steps: list[int] = []
    todo = crossval.units(plan, cases, tmp_path)
    crossval.run(plan, todo, tmp_path, jobs=2, step_done=steps.append)
    assert sum(steps) == 2 * PLAN.steps
    for name, each in results(tmp_path).items():
        assert each["hips"] == results(done)[name]["hips"]


def test_networks_may_be_listed_or_repeated(data: Path, tmp_path: Path) -> None:
    """Too many folds end the command before anything is trained, after it read its options."""
    listed = invoke(data, tmp_path, "--networks", "unet", "hrnet", "--folds", 9)
    repeated = invoke(data, tmp_path, "--networks", "unet", "--networks", "hrnet", "--folds", 9)
    for each in (listed, repeated):
        assert each.exit_code == 1
        assert each.output == (
            "Error: 9 folds need at least 9 patients of the kinds annotated or semireal; "
            "the data has 4\n"
        )
    wrong = invoke(data, tmp_path, "--networks", "unet", "vnet")
    assert wrong.exit_code == 2
    assert "'vnet' is not one of" in wrong.output
