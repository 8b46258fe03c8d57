"""``hiptrain synthesise`` on DICOM folders and archives; errors a person can act on."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from hipscore import series
from hiptrain import anatomy
from hiptrain.cli import main
from tests.models.t1 import headers, hips, t1_volume


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two series of one anatomy: a folder and an archive; beside them the heads' table."""
    root = tmp_path_factory.mktemp("t1")
    volume = t1_volume()
    folder = root / "data" / "series_a"
    folder.mkdir(parents=True)
    for number, (image, plane) in enumerate(zip(headers(volume), volume.voxels, strict=True)):
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.PixelRepresentation = 0
        image.RescaleSlope, image.RescaleIntercept = "1", "0"
        image.PixelData = plane.astype("<u2").tobytes()
        image["PixelData"].VR = "OW"
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    with tarfile.open(root / "data" / "series_b.tar.xz", "w:xz") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, f"series_b/{path.name}")
    with (root / "heads.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["series_instance_uid", "side", "radius_mm", "x_mm", "y_mm", "z_mm"])
        for hip in hips():
            writer.writerow(["1.2.3.4", hip.side.value, hip.radius_mm, *hip.centre_mm])
    return root


def run(source: Path, out: Path, *more: str) -> tuple[int, str]:
    arguments = ["synthesise", "--source", str(source / "data"), "--out", str(out)]
    arguments += ["--heads", str(source / "heads.csv"), *more]
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


def test_folders_and_archives_become_stir_series(source: Path, tmp_path: Path) -> None:
    code, output = run(source, tmp_path, "--burden", "severe", "--seed", "3")
    assert code == 0, output
    for name in ("series_a", "series_b"):
        truth = json.loads((tmp_path / name / "truth.json").read_text())
        assert truth["burden"] == "severe"
        assert truth["unet_score"] > 0
        read = series.assemble(anatomy.read_images(tmp_path / name))
        assert read.volume.grid.shape == t1_volume().grid.shape
        assert str(read.images[0].SeriesInstanceUID) == truth["series_instance_uid"]


def test_the_same_seed_writes_the_same_images(source: Path, tmp_path: Path) -> None:
    for out in ("first", "second"):
        code, output = run(source, tmp_path / out, "--series", "series_a")
        assert code == 0, output
    first, second = ((tmp_path / out / "series_a" / "007.dcm") for out in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert not (tmp_path / "first" / "series_b").exists()


def test_an_unknown_series_is_named(source: Path, tmp_path: Path) -> None:
    code, output = run(source, tmp_path, "--series", "series_z")
    assert code == 1
    assert "has no series_z; it has series_a, series_b" in output


def test_a_series_without_heads_is_named(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "heads.csv"
    table.write_text("series_instance_uid,side,radius_mm,x_mm,y_mm,z_mm\n")
    code, output = run(source, tmp_path / "out", "--heads", str(table))
    assert code == 1
    assert "has no femoral heads in the table" in output
