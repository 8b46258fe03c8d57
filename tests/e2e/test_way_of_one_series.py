"""A series comes in by C-STORE; SEG and report go to the PACS; the score answers by REST."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from pydicom import dcmread
from pydicom.dataset import Dataset

from hipscore.phantom import Burden, synthesise
from hipscore.phantom.dicom import to_datasets
from hipscore.reporting.codes import plain
from tests.e2e.conftest import Service, dciodvfy_errors, hipscore, result_schema


def _write(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    files = []
    for number, dataset in enumerate(datasets):
        path = folder / f"{number:03d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def _seed(service: Service, number: int) -> int:
    """A patient of its own for each service, so that the PACS tells them apart."""
    return number * 10 + ("HIPSCORE_DATABASE_URL" in service.environment)


def test_scored_series_reaches_pacs_and_api(service: Service, tmp_path: Path) -> None:
    made = synthesise(seed=_seed(service, 41), burden=Burden.MODERATE)
    datasets = to_datasets(made)
    study_uid = str(datasets[0].StudyInstanceUID)
    files = _write(datasets, tmp_path / "images")

    sent = service.storescu(files)
    assert sent.returncode == 0, sent.stderr
    result = service.wait(study_uid)
    stored = service.delivered(study_uid, 2)

    Draft202012Validator(result_schema()).validate(result)
    assert result["status"] == "scored"
    assert [hip["side"] for hip in result["hips"]] == ["right", "left"]
    for hip, true in zip(result["hips"], made.hips, strict=True):
        distance = sum((a - b) ** 2 for a, b in zip(hip["centre_mm"], true.centre_mm, strict=True))
        assert distance**0.5 < 8.0
    for modality, data in stored.items():
        assert dciodvfy_errors(data, tmp_path / f"{modality}.dcm") == []
        dataset = dcmread(BytesIO(data))
        assert dataset.StudyInstanceUID == study_uid
        assert dataset.PatientID == datasets[0].PatientID
    for kind, modality in (("seg", "SEG"), ("sr", "SR")):
        artifact = service.get(result["artifacts"][kind])
        assert artifact.headers["content-type"].startswith("application/dicom")
        assert dcmread(BytesIO(artifact.content)).Modality == modality
    assert service.get(result["artifacts"]["overlay"]).content.startswith(b"\x89PNG")

    # the same files without database and network give the same score to the last digit
    offline = hipscore("score", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--json")
    assert offline.returncode == 0, offline.stderr
    (alone,) = json.loads(offline.stdout)
    assert alone["unet_score"] == result["unet_score"]
    assert alone["hips"] == result["hips"]


def test_the_same_series_again_changes_nothing(service: Service, tmp_path: Path) -> None:
    datasets = to_datasets(synthesise(seed=_seed(service, 42), burden=Burden.MILD))
    study_uid = str(datasets[0].StudyInstanceUID)
    files = _write(datasets, tmp_path / "images")
    assert service.storescu(files).returncode == 0
    first = service.wait(study_uid)
    before = service.delivered(study_uid, 2)
    assert service.storescu(files).returncode == 0
    assert service.wait(study_uid) == first
    assert service.delivered(study_uid, 2) == before
    jobs = [
        job
        for job in service.get("/jobs?limit=200").json()["items"]
        if job["study_instance_uid"] == study_uid
    ]
    assert len(jobs) == 1


@pytest.mark.parametrize(
    ("number", "code"),
    (
        (43, "not_fat_suppressed"),
        (44, "not_coronal"),
        (45, "no_hip_found"),
        (46, "missing_slices"),
    ),
)
def test_unsuitable_series_says_why(
    service: Service, tmp_path: Path, number: int, code: str
) -> None:
    seed = _seed(service, number)
    made = synthesise(
        seed=seed,
        anatomy="brain" if code == "no_hip_found" else "hip",
        plane="axial" if code == "not_coronal" else "coronal",
    )
    datasets = to_datasets(made, fat_suppressed=code != "not_fat_suppressed")
    if code == "missing_slices":
        del datasets[11]
    study_uid = str(datasets[0].StudyInstanceUID)
    assert service.storescu(_write(datasets, tmp_path / "images")).returncode == 0
    result = service.wait(study_uid)
    assert (result["status"], result["reason"]["code"]) == ("not_scorable", code)
    assert result["unet_score"] is None
    (report,) = service.delivered(study_uid, 1).values()
    assert dciodvfy_errors(report, tmp_path / "sr.dcm") == []
    document = dcmread(BytesIO(report))
    assert document.Modality == "SR"
    texts = [element.value for element in document.iterall() if element.keyword == "TextValue"]
    assert plain(result["reason"]["text"]) in " ".join(texts)


def test_demo_prints_scores_beside_truth(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    ran = hipscore("demo", "--out", str(out))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for word in ("UNet-score", "right", "left", "truth", "For research", "next:"):
        assert word in ran.stdout
    assert (out / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name.split("-")[0] for path in (out / "pacs").iterdir()) == ["SEG", "SR"]
