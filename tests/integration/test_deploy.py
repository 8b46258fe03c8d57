"""What is shipped works outside the source tree: the wheel, and Orthanc's configuration."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SegmentationStorage

from tests import servers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(directory), str(ROOT)], check=True)
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_carries_every_file_of_the_service_and_its_migrations_and_bundles(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        f"{destination}/{path.relative_to(ROOT / source)}"
        for source, destination in (
            ("service/hipscore", "hipscore"),
            ("models/hiptrain", "hiptrain"),
            ("migrations", "hipscore/_migrations"),
            ("models/bundles", "hipscore/_bundles"),
        )
        for path in (ROOT / source).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert expected <= names
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_installed_wheel_finds_its_migrations_and_its_bundle(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site-packages")
    script = (
        "import hipscore, sys\n"
        "from hipscore.inference import open_bundle\n"
        "from hipscore.store import engine\n"
        "engine.upgrade(sys.argv[1])\n"
        "print(hipscore.__file__, engine.migrations_dir(), open_bundle(None).directory, sep='\\n')"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, f"sqlite:///{tmp_path / 'new.db'}"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site-packages")},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert [
        Path(line).is_relative_to(tmp_path / "site-packages") for line in answer.stdout.split()
    ] == [
        True,
        True,
        True,
    ]
    assert (tmp_path / "new.db").stat().st_size > 0


def _object(sop_class: str, modality: str, number: int) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = f"2.25.1{number}"
    dataset.SeriesInstanceUID = f"2.25.2{number}"
    dataset.StudyInstanceUID = "2.25.3"
    dataset.Modality = modality
    dataset.PatientID = "TEST"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _stable(pacs: servers.Orthanc) -> list[dict[str, object]]:
    changes = pacs.get("/changes?limit=100")["Changes"]
    return [change for change in changes if change["ChangeType"] == "StableSeries"]


def _idle(pacs: servers.Orthanc) -> bool:
    jobs = pacs.get("/jobs?expand")
    return len(jobs) > 0 and all(job["State"] == "Success" for job in jobs)


def test_orthanc_as_shipped_forwards_mr_series_to_hipscore_and_nothing_else(
    tmp_path: Path, storescp: servers.StoreScp
) -> None:
    configuration = json.loads((ROOT / "deploy/orthanc/orthanc.json").read_text())
    modality = configuration["DicomModalities"]["hipscore"]
    here = {
        "AuthenticationEnabled": False,
        "StableAge": 1,
        "LuaScripts": [str(ROOT / "deploy/orthanc/route.lua")],
        "DicomModalities": {"hipscore": {**modality, "Host": storescp.host, "Port": storescp.port}},
    }
    with servers.orthanc(tmp_path, configuration={**configuration, **here}) as pacs:
        pacs.upload(_object(SegmentationStorage, "SEG", 1))
        pacs.upload(_object(MRImageStorage, "MR", 2))
        servers.wait_until(lambda: len(_stable(pacs)) == 2, what="both series are stable")
        servers.wait_until(lambda: _idle(pacs), what="Orthanc has sent what it will send")
        assert [path.name.partition(".")[0] for path in storescp.received()] == ["MR"]
