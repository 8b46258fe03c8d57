"""The figures of merit, on answers whose error is known."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from hipscore import phantom, series
from hipscore.domain import RESEARCH_USE, Channel, Masks, Side, Volume
from hiptrain import card, evaluate, figures, metrics, plots, tables
from hiptrain.anatomy import study
from hiptrain.cli.evaluate import evaluate as command
from hiptrain.corruptions import CORRUPTIONS, WEAK_FAT_NAME
from tests.analytic import Oracle
from tests.models.t1 import headers, hips, t1_volume

BUNDLE = Path(__file__).parents[2] / "models/bundles/hip-unet-semireal"
ABOUT = {"bundle": {"id": "b", "version": "1", "sha256": "0"}, "series": ["s"], "seed": 1}


@pytest.fixture(scope="module")
def made() -> phantom.Phantom:
    return phantom.synthesise(
        seed=5, rows=256, supersampling=1, burden={Side.RIGHT: phantom.Burden.SEVERE}
    )


@pytest.fixture(scope="module")
def volume(made: phantom.Phantom) -> Volume:
    return series.assemble(phantom.to_datasets(made)).volume


@pytest.fixture(scope="module")
def case(made: phantom.Phantom, volume: Volume) -> evaluate.Case:
    return evaluate.Case(name="p", patient="p", burden="severe", make=lambda: (volume, made.masks))


def oracle(made: phantom.Phantom, masks: tuple[Masks, ...] | None = None) -> Oracle:
    """A segmenter that answers with the truth, or with other masks."""
    teller = Oracle()
    told = made if masks is None else replace(made, masks=masks)
    teller.learn(told, phantom.to_datasets(made))
    return teller


@pytest.fixture(scope="module")
def perfect(made: phantom.Phantom) -> Oracle:
    return oracle(made)


@pytest.fixture(scope="module")
def measured(case: evaluate.Case, perfect: Oracle) -> list[figures.CaseFigures]:
    return evaluate.evaluate([case], perfect)


def test_a_perfect_segmenter_has_perfect_figures(
    measured: list[figures.CaseFigures], made: phantom.Phantom
) -> None:
    """As far as sampling the truth on the network's pixels and back allows."""
    total = figures.summary(measured)
    assert (total["hips"], total["hips_found"], total["sides_right"]) == (2, 2, 2)
    assert total["false_hips"] == 0
    assert total["centre_error_mm"]["max"] < 2
    head = total["structures"]["head"]
    assert head["dice"]["min"] > 0.95
    assert head["hd95_mm"]["max"] < 2
    assert head["surface_mm"]["max"] < 0.5
    assert abs(head["relative_error"]["mean"]) < 0.05
    assert total["structures"]["lesion"]["dice"]["n"] == 1
    assert total["structures"]["lesion"]["dice"]["min"] > 0.9
    assert total["structures"]["lesion"]["false_ml"] == {
        "n": 1, "mean": 0.0, "sd": None, "median": 0.0, "min": 0.0, "max": 0.0
    }  # fmt: skip
    score = total["score_patient"]
    assert score["found"]["mean"] == pytest.approx(score["truth"]["mean"], rel=0.05)
    assert total["score_hip"]["n"] == 2
    right = measured[0].hips[0]
    true_ml = made.masks[0].voxels[Channel.FEMORAL_HEAD].sum() * made.volume.grid.voxel_ml
    assert right.structures["head"].truth_ml == pytest.approx(true_ml)


def test_a_blind_segmenter_misses_both_hips(case: evaluate.Case) -> None:
    (figure,) = evaluate.evaluate([case], Oracle())
    total = figures.summary([figure])
    assert total["hips_found"] == 0
    assert total["centre_error_mm"] is None
    assert total["structures"]["head"]["dice"]["mean"] == 0.0
    assert total["structures"]["head"]["pooled_dice"] == 0.0
    assert total["structures"]["head"]["hd95_mm"] is None
    assert total["score_patient"]["left_out"] == 1
    assert total["not_scored"] == {"no_hip_found": 1}
    # a refused series misleads nobody
    assert figure.remarked
    assert figures.unwarned([figure]) == []


def shifted(masks: Masks, pixels: int) -> Masks:
    return replace(masks, voxels=np.roll(masks.voxels, pixels, axis=3))


def test_a_shifted_answer_is_off_by_the_shift(made: phantom.Phantom, case: evaluate.Case) -> None:
    pixels = 3
    mm = pixels * made.volume.grid.spacing_mm[2]
    (figure,) = evaluate.evaluate(
        [case], oracle(made, tuple(shifted(masks, pixels) for masks in made.masks))
    )
    for hip, masks in zip(figure.hips, made.masks, strict=True):
        assert hip.side_right
        assert hip.centre_error_mm == pytest.approx(mm, abs=1.5)
        head = hip.structures["head"]
        assert head.hd95_mm == pytest.approx(mm, rel=0.25)
        voxels = masks.voxels[Channel.FEMORAL_HEAD]
        assert head.dice == pytest.approx(
            metrics.dice(voxels, np.roll(voxels, pixels, axis=2)), abs=0.02
        )


def test_lesions_missed_and_invented_are_told_apart(
    made: phantom.Phantom, volume: Volume, perfect: Oracle
) -> None:
    """The answer is that of a severe hip; the truth given here is none, or twice as much."""
    right, left = made.masks
    empty = right.voxels.copy()
    empty[1:] = False
    clean = evaluate.Case(
        name="c", patient="c", burden="none",
        make=lambda: (volume, (replace(right, voxels=empty), left)),
    )  # fmt: skip
    (figure,) = evaluate.evaluate([clean], perfect)
    assert figure.hips[0].lesion_free
    lesion = figures.summary([figure])["structures"]["lesion"]
    assert lesion["dice"] is None
    assert lesion["pooled_dice"] == 0.0
    wanted = (right.voxels[1] | right.voxels[2]).sum() * volume.grid.voxel_ml
    assert lesion["false_ml"]["max"] == pytest.approx(wanted, rel=0.06)
    assert lesion["false_ml"]["n"] == 2

    fuller = right.voxels.copy()
    fuller[Channel.BME] = fuller[Channel.FEMORAL_HEAD]
    more = replace(clean, make=lambda: (volume, (replace(right, voxels=fuller), left)))
    (figure,) = evaluate.evaluate([more], perfect)
    bme = figure.hips[0].structures["bme"]
    assert bme.relative_error == pytest.approx(bme.found_ml / bme.truth_ml - 1)
    assert bme.error_ml < 0
    assert bme.dice == pytest.approx(
        2 * right.voxels[1].sum() / (right.voxels[1].sum() + fuller[1].sum()), abs=0.05
    )


def test_a_wrong_side_and_a_false_hip_are_counted(
    made: phantom.Phantom, volume: Volume, perfect: Oracle
) -> None:
    right, left = made.masks
    swapped = (replace(right, side=Side.LEFT), replace(left, side=Side.RIGHT))
    case = evaluate.Case(name="s", patient="s", burden="", make=lambda: (volume, swapped))
    total = figures.summary(evaluate.evaluate([case], perfect, segmenting=False))
    assert (total["hips_found"], total["sides_right"]) == (2, 0)
    assert total["structures"] == {}
    alone = replace(case, make=lambda: (volume, (right,)))
    total = figures.summary(evaluate.evaluate([alone], perfect, segmenting=False))
    assert (total["hips"], total["hips_found"], total["false_hips"]) == (1, 1, 1)


def test_agreement_of_known_pairs() -> None:
    pairs = [(1.0, 1.5), (2.0, 2.5), (4.0, 4.5), (8.0, 8.5), (3.0, None)]
    got = figures.agreement(pairs)
    assert (got["n"], got["left_out"]) == (4, 1)
    assert got["bland_altman"]["bias"] == pytest.approx(0.5)
    assert got["bland_altman"]["sd"] == pytest.approx(0.0, abs=1e-9)
    variance = np.var([1, 2, 4, 8], ddof=1)
    # a constant offset costs agreement its square over two
    assert got["icc"]["value"] == pytest.approx(variance / (variance + 0.5**2 / 2), abs=1e-3)
    assert got["absolute_difference"]["max"] == 0.5
    assert figures.agreement([(0.0, 0.0)] * 5)["icc"] is None


def test_spread_is_that_of_known_numbers() -> None:
    assert figures.spread([1.0, None, 2.0, 6.0]) == {
        "n": 3, "mean": 3.0, "sd": 2.6458, "median": 2.0, "min": 1.0, "max": 6.0
    }  # fmt: skip
    assert figures.spread([None]) is None


def test_a_bad_outline_needs_a_remark(measured: list[figures.CaseFigures]) -> None:
    (good,) = measured
    assert figures.unwarned([good]) == []
    right, left = good.hips
    bad = replace(right.structures["head"], dice=0.85)
    worse = replace(right, structures={**right.structures, "head": bad})
    spoilt = replace(good, hips=(worse, left))
    assert figures.unwarned([spoilt]) == [
        {"case": "p", "side": "right", "found": True, "head_dice": 0.85}
    ]
    for warned in (
        replace(spoilt, remarks=("motion",)),
        replace(spoilt, reason="no_hip_found"),
        replace(spoilt, hips=(replace(worse, reason="too_few_slices"), left)),
    ):
        assert figures.unwarned([warned]) == []


def test_every_corruption_is_measured_on_every_series(case: evaluate.Case, perfect: Oracle) -> None:
    """The oracle knows the series as it was made, and nothing else."""
    weak = replace(case, name="weak")
    got = evaluate.robustness([case], [weak], perfect, seed=0)
    assert list(got) == [evaluate.AS_MADE, *CORRUPTIONS, WEAK_FAT_NAME]
    assert len(got) == 11
    found = {name: figures.summary(cases)["hips_found"] for name, cases in got.items()}
    # a matrix of 256 is what it has
    assert {name for name, count in found.items() if count == 2} == {
        evaluate.AS_MADE,
        WEAK_FAT_NAME,
        "256 matrix",
    }
    assert all(found[name] == 0 for name in CORRUPTIONS if name != "256 matrix")
    assert got[WEAK_FAT_NAME][0].name == "weak"
    assert figures.summary(got["one hip only"])["hips"] == 1


def test_what_has_no_hip_is_refused_and_what_has_is_not(volume: Volume, perfect: Oracle) -> None:
    noise = np.random.default_rng(0).rayleigh(20.0, volume.grid.shape).astype(np.float32)
    other = replace(volume, voxels=noise)
    items = evaluate.refuse([("noise-1", other), ("noise-2", other), ("hip-1", volume)], perfect)
    total = evaluate.refusal_summary(items)
    assert total["kinds"] == {
        "hip": {"total": 1, "refused": 0},
        "noise": {"total": 2, "refused": 2},
    }
    assert (total["refused"], total["total"]) == (2, 3)
    assert [item["name"] for item in total["scored"]] == ["hip-1"]
    assert items[0].reason == "no_hip_found"


@pytest.fixture(scope="module")
def report(
    measured: list[figures.CaseFigures], perfect: Oracle, volume: Volume
) -> dict[str, object]:
    content = evaluate.report(
        {"semi-real": measured},
        about=ABOUT,
        robust={evaluate.AS_MADE: measured, "blur": measured},
        refused=evaluate.refuse([("hip-1", volume)], perfect),
    )
    return dict(json.loads(json.dumps(content)))  # as it is read back


def test_the_tables_hold_what_was_measured(report: dict[str, object]) -> None:
    made = tables.tables(report)
    titles = [table.title for table in made]
    assert titles[0] == "Hips found"
    assert titles[-2:] == ["Corruptions", "Series without hips"]
    for table in made:
        assert all(len(row) == len(table.header) for row in table.rows)
        lines = table.markdown().splitlines()
        assert lines[0] == f"**{table.title}**"
        assert table.rows[0][0] in table.text()
    by_title = {table.title: table for table in made}
    assert by_title["Hips found"].rows[0][:5] == ("semi-real", "1 (1)", "2 of 2", "2 of 2", "0")
    assert [row[0] for row in by_title["Corruptions"].rows] == ["as made", "blur"]
    assert by_title["Series without hips"].rows == (("hip", "0 of 1"), ("all", "0 of 1"))
    assert tables.markdown(report).endswith("None.\n")


def test_semireal_cases_have_every_burden_and_come_out_the_same_again() -> None:
    anatomies = [("a", study(t1_volume(), hips()))]
    first = evaluate.semireal_cases(anatomies, draws=2, seed=3)
    assert [case.burden for case in first] == ["none", "mild", "moderate", "severe"] * 2
    volume, masks = first[3].make()
    again, _ = evaluate.semireal_cases(anatomies, draws=2, seed=3)[3].make()
    np.testing.assert_array_equal(volume.voxels, again.voxels)
    assert all(item.voxels[Channel.BME :].any() for item in masks)
    # fat is bright where its suppression is weak
    fat = t1_volume().voxels == t1_volume().voxels.max()
    weak, _ = evaluate.semireal_cases(anatomies, draws=2, seed=3, fat=(0.8, 1.1))[3].make()
    muscle = [np.median(each.voxels[:, 55, 70:80]) for each in (volume, weak)]
    ratio = [np.median(e.voxels[fat]) / m for e, m in zip((volume, weak), muscle, strict=True)]
    assert ratio[1] > 1.5 * ratio[0]


def test_the_worst_hips_are_drawn(
    measured: list[figures.CaseFigures], case: evaluate.Case, perfect: Oracle, tmp_path: Path
) -> None:
    (figure,) = measured
    worst = plots.worst(measured, 5)
    assert [hip.side for _, hip in worst] == ["right", "left"]
    path = plots.picture(case, figure.hips[0], perfect, tmp_path)
    with Image.open(path) as picture:
        colours = {colour for _, colour in picture.getcolors(10**6) or ()}
    for outline in ((0, 200, 220), (245, 245, 245), (90, 220, 60), (255, 70, 200)):
        assert outline in colours


def test_the_card_says_what_was_measured_and_what_was_unseen(
    report: dict[str, object], tmp_path: Path
) -> None:
    described = json.loads((BUNDLE / "bundle.json").read_text())
    described["training"]["networks"]["segmenter"]["design"] |= {
        "kind": "unetpp", "width": 24, "point_rend": True
    }  # fmt: skip
    (tmp_path / "bundle.json").write_text(json.dumps(described))
    trained = described["training"]["training_series"][0]
    text = card.write(tmp_path, {**report, "series": [trained, "series_99"]}).read_text()
    assert "UNet++ of width 24 with point rendering" in text
    assert "| blur |" in text
    assert "0 of 1" in text
    assert f"Seen in training, so the figures on it flatter: {trained}" in text
    assert "Unseen by any step of the training: series_99" in text
    assert RESEARCH_USE in text
    assert "Not measured." in card.write(tmp_path, None).read_text()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One T1 series as DICOM, and the table of its heads."""
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
    with (root / "heads.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["series_instance_uid", "side", "radius_mm", "x_mm", "y_mm", "z_mm"])
        for hip in hips():
            writer.writerow(["1.2.3.4", hip.side.value, hip.radius_mm, *hip.centre_mm])
    return root


def run(source: Path, *more: str) -> tuple[int, str]:
    arguments = ["--source", str(source / "data"), "--heads", str(source / "heads.csv"), *more]
    result = CliRunner().invoke(command, arguments)
    return result.exit_code, result.output


def test_the_command_measures_the_shipped_bundle(source: Path, tmp_path: Path) -> None:
    """A body of spheres is no patient: what is checked is that everything is written."""
    target, markdown = tmp_path / "f.json", tmp_path / "r.md"
    code, output = run(
        source, "--series", "series_a", "--phantoms", "0", "--refusals", "1",
        "--json", str(target), "--markdown", str(markdown),
    )  # fmt: skip
    assert code == 0, output
    assert RESEARCH_USE in output
    content = json.loads(target.read_text())
    assert content["series"] == ["series_a"]
    assert content["groups"]["semi-real"]["summary"]["series"] == 4
    assert content["groups"]["T1, hips found only"]["summary"]["structures"] == {}
    assert content["refusals"]["total"] == 1
    assert "**semi-real: structures**" in markdown.read_text()


def test_errors_are_one_line(source: Path) -> None:
    code, output = run(source, "--series", "series_z")
    assert code == 1
    assert "has no series_z; it has series_a" in output
    code, output = run(source, "--series", "series_a", "--pictures", "2")
    assert code == 1
    assert output.strip() == "Error: --pictures needs --out, the folder to write them to"
    code, output = run(source)
    assert code == 1
    assert output.strip() == "Error: give --table, or --source with --heads and --series"
