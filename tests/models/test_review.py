"""``hiptrain review``: what experts see, what they do not, and how their words are counted."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hipscore import phantom
from hipscore.domain import Channel
from hipscore.phantom import Burden, Phantom
from hipscore.reporting import codes
from hiptrain import review, review_tally, statistics
from hiptrain.cli.review import review as command
from tests.analytic import Oracle

NAME = "Doe^Jane"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Phantom, Oracle]:
    """A small phantom on disk, under a name that must not get out, and who knows its truth."""
    folder = tmp_path_factory.mktemp("Doe")
    made = phantom.synthesise(seed=5, rows=256, supersampling=1, burden=Burden.MILD)
    images = phantom.to_datasets(made)
    oracle = Oracle()
    oracle.learn(made, images)
    for number, image in enumerate(images):
        image.PatientName, image.PatientID = NAME, "DOE-1234"
        image.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    (folder / "notes.txt").write_text("not DICOM")
    return folder, made, oracle


@pytest.fixture(scope="module")
def drawn(study: tuple[Path, Phantom, Oracle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("review")
    folder, _, oracle = study
    (case,) = review.make(review.sources([folder]), oracle, out)
    assert case.pictures == len(rows_of(out / "key.csv"))
    assert not case.reason
    return out


def colours(path: Path) -> dict[Channel, int]:
    """How many pixels of the pictures, legend left out, have the hue of each outline."""
    with Image.open(path) as image:
        pixels = np.asarray(image, dtype=float)[64:684]
    found = {}
    for channel in Channel:
        wanted = np.array(codes.STRUCTURES[channel].rgb, dtype=float)
        found[channel] = int((np.abs(pixels - wanted).max(axis=-1) < 40).sum())
    return found


def test_every_scored_slice_of_both_hips_has_a_picture_and_a_row(drawn: Path) -> None:
    key = rows_of(drawn / "key.csv")
    sheet = rows_of(drawn / "experts" / "review.csv")
    files = sorted(path.stem for path in (drawn / "experts" / "pictures").iterdir())
    assert [row["picture"] for row in key] == [row["picture"] for row in sheet] == files
    assert {row["side"] for row in key} == {"right", "left"}
    assert all(row["scored"] == "True" for row in key)
    assert list(sheet[0]) == review_tally.columns(outlines=True)
    assert not any(value for row in sheet for name, value in row.items() if name != "picture")


def test_the_outlines_are_those_of_the_key(drawn: Path) -> None:
    key = rows_of(drawn / "key.csv")
    marked = {float(row["bme_mm2"]) > 0 for row in key}
    assert marked == {True, False}
    for row in key:
        seen = colours(drawn / "experts" / "pictures" / f"{row['picture']}.jpg")
        assert seen[Channel.FEMORAL_HEAD] > 100
        if float(row["bme_mm2"]) > 20:
            assert seen[Channel.BME] > 20, row
        if float(row["bme_mm2"]) == 0:
            assert seen[Channel.BME] < 5, row


def test_the_areas_of_the_key_are_those_of_the_truth(
    drawn: Path, study: tuple[Path, Phantom, Oracle]
) -> None:
    _, made, _ = study
    masks = {item.side.value: item.voxels for item in made.masks}
    for row in rows_of(drawn / "key.csv"):
        truth = masks[row["side"]][Channel.FEMORAL_HEAD, int(row["slice_index"])].sum()
        area = truth * made.volume.grid.pixel_mm2
        assert float(row["head_mm2"]) == pytest.approx(area, rel=0.15)


def test_nothing_handed_out_names_the_patient_or_the_series(
    drawn: Path, study: tuple[Path, Phantom, Oracle]
) -> None:
    folder, _, _ = study
    secrets = [b"Doe", b"DOE", str(folder).encode()]
    secrets.append(rows_of(drawn / "key.csv")[0]["series_instance_uid"].encode())
    for path in (drawn / "experts").rglob("*.*"):
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret in content], path
    with Image.open(drawn / "experts" / "pictures" / "p0001.jpg") as image:
        assert not image.getexif()
    page = (drawn / "experts" / "index.html").read_text(encoding="utf-8")
    assert "For research, not for clinical decisions" in page
    assert page.count("<figure ") == len(rows_of(drawn / "key.csv"))
    assert "http" not in page


def test_blind_pictures_show_no_outline_and_come_in_no_order(
    study: tuple[Path, Phantom, Oracle], tmp_path: Path
) -> None:
    folder, _, oracle = study
    review.make(review.sources([folder]), oracle, tmp_path, blind=True, everything=True)
    key = rows_of(tmp_path / "key.csv")
    for row in key:
        seen = colours(tmp_path / "experts" / "pictures" / f"{row['picture']}.jpg")
        assert max(seen.values()) < 5
    places = [(row["side"], int(row["slice_index"])) for row in key]
    assert places != sorted(places, key=lambda item: (item[0] != "right", item[1]))
    assert {row["scored"] for row in key} == {"True", "False"}
    sheet = rows_of(tmp_path / "experts" / "review.csv")
    assert "bme_outline" not in sheet[0]
    page = (tmp_path / "experts" / "index.html").read_text(encoding="utf-8")
    assert "partly" not in page


def test_the_command_runs_the_shipped_bundle(
    study: tuple[Path, Phantom, Oracle], tmp_path: Path
) -> None:
    folder, _, _ = study
    arguments = ["make", "--cases", str(folder), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    key = rows_of(tmp_path / "out" / "key.csv")
    assert f"{len(key)} pictures of 1 cases" in result.output
    assert {row["side"] for row in key} == {"right", "left"}
    again = CliRunner().invoke(command, arguments)
    assert (again.exit_code, "choose an empty folder" in again.output) == (1, True)


def test_a_series_that_is_not_scorable_is_named(tmp_path: Path) -> None:
    made = phantom.synthesise(seed=5, rows=128, supersampling=1, slices=4)
    for number, image in enumerate(phantom.to_datasets(made)):
        image.BurnedInAnnotation = "YES"
        image.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    (case,) = review.make(review.sources([tmp_path]), Oracle(), tmp_path / "out")
    assert case.pictures == 0
    assert "burned in" in case.reason


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    result = CliRunner().invoke(command, ["make", str(tmp_path), "--out", str(tmp_path / "o")])
    assert result.exit_code == 1
    assert "no DICOM image" in result.output


# --- the tally ------------------------------------------------------------------------
# per picture: case, BME mm², synovitis mm²
KEY = [("1", 50, 0), ("1", 50, 0), ("1", 0, 30), ("2", 0, 0), ("2", 0, 30), ("2", 2, 0)]
# per picture: BME present, its outline, synovitis present, its outline
FIRST = [
    ("yes", "good", "no", ""),
    ("yes", "wrong", "no", ""),
    ("yes", "", "Yes", "partly"),
    ("no", "", "no", ""),
    ("no", "", "unsure", ""),
    ("n", "", "", ""),
]
SECOND = [
    ("yes", "good", "no", ""),
    ("no", "", "no", ""),
    ("yes", "", "yes", "good"),
    ("no", "", "no", ""),
    ("no", "", "no", ""),
    ("no", "", "no", ""),
]


def write(path: Path, header: list[str], rows: Sequence[Sequence[object]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return str(path)


@pytest.fixture
def key(tmp_path: Path) -> str:
    rows = [[f"p{n}", *row] for n, row in enumerate(KEY, start=1)]
    return write(tmp_path / "key.csv", ["picture", "case", "bme_mm2", "synovitis_mm2"], rows)


def sheet(path: Path, words: Sequence[Sequence[str]], expert: str = "") -> str:
    rows = [[expert, f"p{n}", *row, ""] for n, row in enumerate(words, start=1)]
    return write(path, review_tally.columns(outlines=True), rows)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, ["tally", *arguments])
    return result.exit_code, result.output


def of(found: dict[str, Any], expert: str, lesion: str) -> dict[str, Any]:
    (own,) = (
        item for item in found["experts"] if (item["expert"], item["structure"]) == (expert, lesion)
    )
    assert isinstance(own, dict)
    return own


def cells(own: dict[str, Any]) -> tuple[int, ...]:
    return tuple(own[name] for name in ("tp", "fn", "fp", "tn", "elsewhere", "unsure", "blank"))


def test_pictures_are_counted_by_hand(key: str, tmp_path: Path) -> None:
    first = sheet(tmp_path / "review_A.csv", FIRST)
    second = sheet(tmp_path / "b.csv", SECOND, "Dr B")
    code, output = run("--sheet", first, second, "--key", key, "--json")
    assert code == 0, output
    found = json.loads(output)
    own = of(found, "review_A", "bme")
    assert cells(own) == (1, 2, 1, 2, 1, 0, 0)  # the wrong outline is missed; 2 mm² is marked
    assert own["sensitivity"]["value"] == pytest.approx(1 / 3)
    wilson = statistics.wilson(2, 3)
    assert own["specificity"]["low"] == pytest.approx(wilson.low)
    assert (own["good"], own["partly"], own["wrong"]) == (1, 0, 1)
    assert cells(of(found, "review_A", "synovitis")) == (1, 0, 0, 3, 0, 1, 1)
    # p3: edema unmarked, synovitis found; p5: unsure; p6: synovitis not judged
    assert cells(of(found, "review_A", "any")) == (2, 1, 0, 1, 1, 1, 1)
    assert cells(of(found, "Dr B", "bme")) == (1, 1, 2, 2, 0, 0, 0)
    assert cells(of(found, "Dr B", "any")) == (2, 0, 3, 1, 0, 0, 0)
    assert own["sensitivity_by_case"] is None  # two cases are too few to draw from


def test_experts_are_compared_where_both_judged(key: str, tmp_path: Path) -> None:
    first = sheet(tmp_path / "A.csv", FIRST)
    second = sheet(tmp_path / "B.csv", SECOND)
    code, output = run("--sheet", first, "--sheet", second, "--key", key, "--json")
    assert code == 0, output
    bme, synovitis, _ = json.loads(output)["pairs"]
    assert (bme["n"], bme["agree"], bme["unsure"]) == (6, 5, 0)
    assert bme["kappa"]["value"] == pytest.approx((5 / 6 - 1 / 2) / (1 - 1 / 2))
    assert (synovitis["n"], synovitis["agree"], synovitis["unsure"]) == (4, 4, 1)


def test_a_small_outline_may_count_as_no_mark(key: str, tmp_path: Path) -> None:
    own = sheet(tmp_path / "A.csv", FIRST)
    code, output = run("--sheet", own, "--key", key, "--json", "--min-area", "5")
    assert code == 0, output
    assert cells(of(json.loads(output), "A", "bme")) == (1, 2, 0, 3, 1, 0, 0)


def test_whole_cases_are_drawn_for_the_second_interval() -> None:
    key = {
        f"p{n}": {"case": str(n // 10), "bme_mm2": "9" if n < 50 else "0", "synovitis_mm2": "0"}
        for n in range(100)
    }
    own = {name: {"bme_present": "yes", "synovitis_present": "no"} for name in key}
    (bme, *_), _ = review_tally.tally({"A": own}, key)
    assert bme.sensitivity is not None
    assert bme.sensitivity.value == 0.5
    assert bme.sensitivity_by_case is not None
    low, high = bme.sensitivity_by_case  # ten cases, five of them missed throughout
    assert (low, high) == pytest.approx((0.2, 0.8), abs=0.1)
    assert high - low > 2 * (bme.sensitivity.high - bme.sensitivity.low)


def test_the_table_says_what_it_means(key: str, tmp_path: Path) -> None:
    out = tmp_path / "tally.json"
    own = sheet(tmp_path / "A.csv", FIRST)
    code, output = run("--sheet", own, "--key", key, "--out", str(out))
    assert code == 0, output
    assert "| bone marrow edema | A | 1 | 2 | 1 | 2 | 0 | 0 | 0.33 (0.06 to 0.79) |" in output
    assert "slices of a hip are not independent" in output
    assert "For research, not for clinical decisions" in output
    assert json.loads(out.read_text())["cases"] == 2


@pytest.mark.parametrize(
    ("picture", "word", "said"),
    (
        ("p9", "yes", "'p9' is not in the key"),
        ("p1", "perhaps", "'perhaps' is none of yes, no, unsure"),
        ("p2", "yes", "judged picture p2 twice"),
    ),
)
def test_a_sheet_that_is_wrong_is_refused(
    key: str, tmp_path: Path, picture: str, word: str, said: str
) -> None:
    header = ["picture", "bme_present"]
    own = write(tmp_path / "A.csv", header, [[picture, word], ["p2", "no"]])
    code, output = run("--sheet", own, "--key", key)
    assert (code, said in output) == (1, True), output


def test_what_is_no_sheet_and_no_key_is_refused(key: str, tmp_path: Path) -> None:
    other = write(tmp_path / "x.csv", ["a", "b"], [[1, 2]])
    code, output = run("--sheet", other, "--key", key)
    assert (code, "no review sheet" in output) == (1, True)
    code, output = run("--sheet", other, "--key", other)
    assert (code, "no key" in output) == (1, True)
