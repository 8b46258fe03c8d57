"""``hiptrain agreement``: from a table on disk to figures whose truth is known."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from hiptrain import agreement_table as reading
from hiptrain import statistics
from hiptrain.agreement import visit_order
from hiptrain.cli.agreement import agreement

COLUMNS = ("patient", "visit", "unet_score", "reader_a", "reader_b", "crp", "comment")


def write(path: Path, rows: Sequence[Sequence[object]], columns: Sequence[str] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


def made_rows() -> list[list[Any]]:
    """Twelve patients twice: readers follow the activity, CRP does not, two cells are missing."""
    rng = np.random.default_rng(0)
    rows: list[list[Any]] = []
    for patient in range(12):
        activity = float(rng.gamma(2, 2))
        for visit, share in (("month 12", rng.uniform(0, 1)), ("month 3", 1.0)):
            true = activity * float(share)
            readers = [round(6 * true + rng.normal(), 1), round(6 * true + 2 + rng.normal(), 1)]
            crp = round(float(rng.exponential(5)), 1)
            rows.append([f"p{patient}", visit, round(true / 3, 4), *readers, crp, "ok"])
    rows[0][3] = ""
    rows[5][4] = "NA"
    return rows


def run(table: Path, out: Path, *more: str) -> tuple[int, str]:
    arguments = ["--table", str(table), "--out", str(out), "--resamples", "200", *more]
    result = CliRunner().invoke(agreement, arguments)
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("agreement")
    code, output = run(write(folder / "t.csv", made_rows()), folder / "out")
    assert code == 0, output
    return folder / "out", json.loads((folder / "out" / "agreement.json").read_text()), output


def line(found: dict[str, Any], table: str, a: str, b: str) -> dict[str, Any]:
    (only,) = (item for item in found[table] if (item["a"], item["b"]) == (a, b))
    assert isinstance(only, dict)
    return only


def test_columns_are_taken_by_their_names(report: tuple[Path, dict[str, Any], str]) -> None:
    _, found, _ = report
    assert found["readers"] == ["reader_a", "reader_b"]
    assert found["indices"] == ["crp"]
    assert (found["rows"], found["patients"]) == (24, 12)


def test_correlations_are_of_complete_pairs(report: tuple[Path, dict[str, Any], str]) -> None:
    _, found, _ = report
    rows = [row for row in made_rows() if row[3] != ""]
    own = line(found, "correlations", "unet_score", "reader_a")
    known: Any = stats.spearmanr([row[2] for row in rows], [row[3] for row in rows])
    assert own["n"] == 23
    assert own["patients"] == 12
    assert own["figures"]["rho"] == pytest.approx(known.statistic)
    assert own["figures"]["low"] > 0.8
    assert line(found, "correlations", "unet_score", "mean of readers")["n"] == 22
    assert abs(line(found, "correlations", "unet_score", "crp")["figures"]["rho"]) < 0.6


def test_visits_of_a_patient_are_not_independent(
    report: tuple[Path, dict[str, Any], str],
) -> None:
    _, found, _ = report
    rows = made_rows()
    own = line(found, "correlations", "unet_score", "crp")["figures"]
    a, b = [row[2] for row in rows], [row[5] for row in rows]
    by_patient = statistics.spearman(a, b, resamples=200, groups=[row[0] for row in rows])
    assert own["groups"] == 12
    assert (own["low"], own["high"]) == pytest.approx((by_patient.low, by_patient.high))
    assert own["low"] != pytest.approx(statistics.spearman(a, b, resamples=200).low)


def test_p_is_adjusted_over_the_table(report: tuple[Path, dict[str, Any], str]) -> None:
    _, found, _ = report
    p = [item["figures"]["p"] for item in found["correlations"]]
    adjusted = [item["p_adjusted"] for item in found["correlations"]]
    assert adjusted == pytest.approx(stats.false_discovery_control(p).tolist())


def test_changes_are_last_minus_first_in_time(report: tuple[Path, dict[str, Any], str]) -> None:
    _, found, _ = report
    assert found["visits"] == ["month 3", "month 12"]
    rows = made_rows()
    pairs = [(rows[place], rows[place + 1]) for place in range(0, 24, 2)]  # month 12, month 3
    known: Any = stats.spearmanr(
        [after[2] - before[2] for after, before in pairs],
        [after[5] - before[5] for after, before in pairs],
    )
    own = line(found, "changes", "unet_score", "crp")
    assert own["n"] == own["patients"] == 12
    assert own["figures"]["rho"] == pytest.approx(known.statistic)
    assert own["figures"]["p"] == pytest.approx(known.pvalue)
    assert line(found, "changes", "unet_score", "reader_a")["n"] == 11


def test_readers_agree_but_for_their_bias(report: tuple[Path, dict[str, Any], str]) -> None:
    _, found, _ = report
    (own,) = found["agreement"]
    rows = [row for row in made_rows() if row[3] != "" and row[4] != "NA"]
    table = np.array([[row[3], row[4]] for row in rows])
    assert own["n"] == 22
    assert own["icc"]["value"] == pytest.approx(statistics.icc(table).value)
    assert own["differences"]["bias"] == pytest.approx(np.mean(table[:, 0] - table[:, 1]))
    assert own["differences"]["bias"] == pytest.approx(-2, abs=1)


def test_the_report_is_text_and_pictures(report: tuple[Path, dict[str, Any], str]) -> None:
    out, _, output = report
    text = (out / "agreement.md").read_text(encoding="utf-8")
    assert "For research, not for clinical decisions" in text
    assert "does not say that the two agree" in text
    assert "different units" in text
    assert "| unet_score | reader_a | 23 | 12 |" in text
    assert "| unet_score | reader_a | 23 | 12 |" in output
    for name in ("scatter", "changes", "bland_altman", "correlations"):
        assert f"({name}.png)" in text
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_icc_with_the_score_only_when_asked(tmp_path: Path) -> None:
    rows = [[f"p{n}", n / 2, n / 2 + 1] for n in range(8)]
    table = write(tmp_path / "t.csv", rows, ("patient", "unet_score", "reader_by_hand"))
    code, output = run(table, tmp_path / "a", "--json")
    assert code == 0, output
    assert json.loads(output)["agreement"] == []
    code, output = run(table, tmp_path / "b", "--json", "--same-scale")
    assert code == 0, output
    (own,) = json.loads(output)["agreement"]
    assert own["raters"] == ["unet_score", "reader_by_hand"]
    assert own["differences"]["bias"] == pytest.approx(-1)
    assert own["icc"]["value"] == pytest.approx(1.5 / (1.5 + 0.5))  # variances 1.5 and 0.5


def test_what_cannot_be_computed_says_why(tmp_path: Path) -> None:
    rows = [[f"p{n}", n, 3, n if n < 3 else "", n % 5] for n in range(10)]
    columns = ("patient", "unet_score", "flat", "rare", "basdai")
    code, output = run(write(tmp_path / "t.csv", rows, columns), tmp_path / "o", "--json")
    assert code == 0, output
    found = json.loads(output)
    assert line(found, "correlations", "unet_score", "flat")["reason"] == "no spread in flat"
    rare = line(found, "correlations", "unet_score", "rare")
    assert rare["reason"] == "at least 4 pairs are needed, not 3"
    assert rare["n"] == 3
    assert line(found, "correlations", "unet_score", "basdai")["p_adjusted"] is not None


# --- joining hipscore's CSV -----------------------------------------------------------
HIPSCORE = (
    "series_instance_uid", "status", "reason", "unet_score", "side", "hip_unet_score",
    "bme_score", "synovitis_score", "slices_used", "femoral_head_ml", "bme_ml", "synovitis_ml",
    "effusion_mm",
)  # fmt: skip


def hipscore_csv(path: Path) -> Path:
    rows: list[list[object]] = []
    for n in range(6):
        for side, own in (("right", 0.5 + n), ("left", 1.0)):
            rows.append([f"1.2.{n}", "scored", "", 1.5 + n, side, own, own, 0, 11, 50, 1, 2, n])
    rows[-1][5] = rows[-1][6] = ""
    rows.append(["1.2.9", "not_scorable", "no_hip_found", *[""] * 10])
    return write(path, rows, HIPSCORE)


def test_the_columns_are_those_the_service_writes() -> None:
    from hipscore.cli.score import _COLUMNS

    assert HIPSCORE == _COLUMNS


def test_scores_of_patients_are_joined(tmp_path: Path) -> None:
    scores = reading.read_table(hipscore_csv(tmp_path / "s.csv"))
    table = [{"patient": f"p{n}", "series_instance_uid": f"1.2.{n}"} for n in (0, 5, 9, 7)]
    rows, remarks = reading.join(table, scores)
    assert [row["unet_score"] for row in rows] == ["1.5", "6.5", "", ""]
    assert [row["bme_score"] for row in rows] == ["1.5", "5.5", "", ""]
    assert [row["effusion_mm"] for row in rows] == ["0.0", "5.0", "", ""]
    assert remarks[0] == "1 rows have no score (1.2.7)"
    assert "1 rows one hip alone" in remarks[1]


def test_scores_of_hips_are_joined_by_side(tmp_path: Path) -> None:
    rows = [[f"p{n}", f"1.2.{n}", side, n, n * 2] for n in range(6) for side in "RL"]
    columns = ("patient", "series_instance_uid", "side", "reader_a", "crp")
    table = write(tmp_path / "t.csv", rows, columns)
    scores = str(hipscore_csv(tmp_path / "s.csv"))
    code, output = run(table, tmp_path / "out", "--scores", scores, "--json")
    assert code == 0, output
    found = json.loads(output)
    own = line(found, "correlations", "unet_score", "reader_a")
    assert (own["n"], own["patients"]) == (11, 6)
    assert found["indices"] == ["crp"]
    assert any("each hip" in remark for remark in found["remarks"])


# --- tables as people make them -------------------------------------------------------
def test_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufeffpatient;unet_score;crp\np1;1,5;2\n;;\np2;2;n/a\n", encoding="utf-8")
    rows = reading.read_table(path)
    assert rows == [
        {"patient": "p1", "unet_score": "1.5", "crp": "2"},
        {"patient": "p2", "unet_score": "2", "crp": "n/a"},
    ]
    study = reading.study_of(rows)
    np.testing.assert_array_equal(study.values["crp"], [2, np.nan])


@pytest.mark.parametrize(
    ("visits", "order"),
    (
        (["10", "2"], ["2", "10"]),
        (["month 12", "month 3"], ["month 3", "month 12"]),
        (["2024-02-01", "2023-12-24"], ["2023-12-24", "2024-02-01"]),
        (["baseline", "after"], ["baseline", "after"]),
    ),
)
def test_visits_are_put_in_order(visits: list[str], order: list[str]) -> None:
    assert visit_order([*visits, *visits]) == order


@pytest.mark.parametrize(
    ("text", "said"),
    (
        ("patient,unet_score\np1,2\n", "nothing to compare unet_score with"),
        ("patient,score,crp\np1,2,3\n", "no column 'unet_score'"),
        ("name,unet_score,crp\np1,2,3\n", "no column 'patient'"),
        ("patient,unet_score,crp\n,2,3\n", "every row needs a patient"),
        ("patient,unet_score,crp\np1,high,3\n", "holds 'high'"),
        ("patient,unet_score,crp\np1,inf,3\n", "holds 'inf'"),
        ("patient,unet_score,crp\np1,2,3,4\n", "more cells"),
        ("patient,unet_score,crp,crp\np1,2,3,4\n", "name of its own"),
        ("patient,visit,unet_score,crp\np1,1,2,3\np1,1,2,3\n", "appears twice"),
        ("patient,visit,unet_score,crp\np1,,2,3\n", "has no name"),
        ("patient,side,unet_score,crp\np1,both,2,3\n", "right or left"),
        ("patient,unet_score,crp\n", "no rows"),
    ),
)
def test_a_table_that_is_wrong_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    code, output = run(path, tmp_path / "out")
    assert code == 1
    assert said in output
    assert output.count("\n") == 1


def test_scores_that_match_nothing_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", [["p1", "9.9", 3]], ("patient", "series_instance_uid", "crp"))
    scores = str(hipscore_csv(tmp_path / "s.csv"))
    code, output = run(table, tmp_path / "out", "--scores", scores)
    assert (code, "no row of the table" in output) == (1, True)
    code, output = run(table, tmp_path / "out", "--scores", scores, "--key", "uid")
    assert (code, "no column 'uid'" in output) == (1, True)
