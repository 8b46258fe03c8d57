"""Data set folders: what is written comes back, and looks as the service's pictures do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hipscore import hips, phantom
from hiptrain import dataset, prepare
from hiptrain.specs import LOCALISER, SEGMENTER


@pytest.fixture(scope="module")
def made() -> phantom.Phantom:
    return phantom.synthesise(seed=5, rows=192, slices=14, supersampling=1)


def test_a_case_comes_back_with_patients_and_hips(tmp_path: Path, made: phantom.Phantom) -> None:
    rng = np.random.default_rng(0)
    arrays = dataset.planes_of(made.volume, made.masks)
    arrays |= dataset.crops_of(made.volume, made.masks, rng)
    for name in ("a", "b"):
        about = {"name": name, "patient": f"p-{name}", "kind": "phantom"}
        dataset.save_case(tmp_path / f"{name}.npz", about, arrays)
    cases = dataset.list_cases([tmp_path])
    assert [(case.name, case.patient, case.kind) for case in cases] == [
        ("a", "p-a", "phantom"),
        ("b", "p-b", "phantom"),
    ]
    crops = dataset.read_crops(cases)
    assert crops.inputs.shape[1:] == (SEGMENTER.context, SEGMENTER.rows, SEGMENTER.columns)
    assert crops.truths.shape[1:] == (3, SEGMENTER.rows, SEGMENTER.columns)
    assert set(crops.patients) == {"p-a", "p-b"}
    assert sorted(set(crops.hips)) == [0, 1, 2, 3]
    assert crops.shows_something().any()
    planes = dataset.read_planes(cases)
    assert len(planes) == 2 * made.volume.grid.shape[0]
    assert sorted(set(planes.hips)) == [0, 1]


def test_planes_read_back_are_those_the_service_makes(
    tmp_path: Path, made: phantom.Phantom
) -> None:
    about = {"name": "a", "patient": "p", "kind": "phantom"}
    dataset.save_case(tmp_path / "a.npz", about, dataset.planes_of(made.volume, made.masks))
    read = dataset.read_planes(dataset.list_cases([tmp_path]))
    served = hips.localiser_planes(made.volume, LOCALISER).planes
    np.testing.assert_allclose(read.inputs, served, atol=2e-3)


def test_an_empty_folder_and_a_stray_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no data set"):
        dataset.list_cases([tmp_path])
    np.savez(tmp_path / "stray.npz", pictures=np.zeros(3))
    with pytest.raises(ValueError, match=r"stray.npz is not a file of a data set"):
        dataset.list_cases([tmp_path])


def test_a_case_without_patient_or_of_unknown_kind_is_not_written(tmp_path: Path) -> None:
    for about in ({"name": "a", "kind": "phantom"}, {"name": "a", "patient": "p", "kind": "x"}):
        with pytest.raises(ValueError, match="needs name, patient and a kind"):
            dataset.save_case(tmp_path / "a.npz", about, {})
    assert not list(tmp_path.iterdir())


def test_prepare_makes_each_kind_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    plan = prepare.Plan(draws=0, plain=0, phantoms=1, strangers=2, seed=4)
    source = tmp_path / "anatomies"
    (source / "series_x").mkdir(parents=True)
    jobs = prepare.plan_jobs(source, [], plan)
    out = tmp_path / "set"
    counted: list[int] = []
    prepare.prepare(jobs, tmp_path / "none.csv", out, plan, workers=1, done=counted.append)
    assert len(counted) == len(jobs) == 3
    kinds = [case.kind for case in dataset.list_cases([out])]
    assert sorted(kinds) == ["phantom", "stranger", "stranger"]
    assert json.loads((out / "set.json").read_text())["plan"]["phantoms"] == 1
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    prepare.prepare(jobs, tmp_path / "none.csv", out, plan, workers=1)
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*.npz")}


def test_sets_of_other_seeds_have_other_patients() -> None:
    patients = [
        {job.patient for job in prepare.plan_jobs(Path(__file__).parent, [], plan)}
        for plan in (
            prepare.Plan(draws=0, plain=0, phantoms=4, strangers=4, seed=seed) for seed in (1, 2)
        )
    ]
    assert not patients[0] & patients[1]
