"""The command line without servers: help, settings, tables, files in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom import dcmread

from hipscore.cli import COMMANDS, group
from hipscore.cli.common import files_in, table


def _run(*arguments: str, **environment: str) -> tuple[int, str]:
    result = CliRunner(env=environment).invoke(group, list(arguments))
    return result.exit_code, result.output


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_explains_itself(command: str) -> None:
    code, output = _run(command, "--help")
    assert code == 0
    assert output.startswith("Usage:")


def test_help_lists_every_command_and_says_research() -> None:
    code, output = _run("--help")
    assert code == 0
    assert "not for clinical decisions" in output
    for command, (_, _, line) in COMMANDS.items():
        assert command in output
        assert line.split()[0] in output


def test_help_loads_none_of_the_heavy_libraries() -> None:
    script = (
        "import sys, hipscore.cli; "
        "print([m for m in ('numpy', 'pydicom', 'celery', 'fastapi') if m in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_unknown_command_is_a_usage_error() -> None:
    code, output = _run("scor")
    assert code == 2
    assert "No such command" in output


def test_config_masks_secrets_and_names_every_setting() -> None:
    url = "postgresql+psycopg://hip:open-sesame@db/hip"
    code, output = _run("config", "--json", HIPSCORE_DATABASE_URL=url, HIPSCORE_AE_TITLE="HIP2")
    assert code == 0
    values = json.loads(output)
    assert values["database_url"] == "********"
    assert values["ae_title"] == "HIP2"
    assert "open-sesame" not in output
    assert "open-sesame" not in _run("config", HIPSCORE_DATABASE_URL=url)[1]


@pytest.mark.parametrize(
    ("name", "value", "named"),
    (
        ("HIPSCORE_DICOM_PORT", "99999", "HIPSCORE_DICOM_PORT"),
        ("HIPSCORE_DESTINATIONS", "PACS-10.0.0.5", "AET@HOST:PORT"),
        ("HIPSCORE_AE_TITLE", "A" * 17, "AE title"),
        ("HIPSCORE_CONFIG", "/nowhere/hipscore.toml", "hipscore.toml"),
    ),
)
def test_wrong_setting_is_one_clear_line(name: str, value: str, named: str) -> None:
    code, output = _run("config", **{name: value})
    assert code == 1
    assert named in output
    assert output.count("\n") == 1


def test_settings_file_is_read_and_environment_wins(tmp_path: Path) -> None:
    path = tmp_path / "hipscore.toml"
    path.write_text('ae_title = "FROMFILE"\nhttp_port = 9000\n', "utf-8")
    code, output = _run("config", "--json", HIPSCORE_CONFIG=str(path), HIPSCORE_HTTP_PORT="9001")
    assert code == 0
    values = json.loads(output)
    assert (values["ae_title"], values["http_port"]) == ("FROMFILE", 9001)


def test_files_in_walks_folders_once_and_leaves_hidden_files_out(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/1.dcm", "a/b/2.dcm", "a/.hidden"):
        (tmp_path / name).touch()
    found = files_in([tmp_path / "a", tmp_path / "a" / "1.dcm"])
    assert [path.name for path in found] == ["1.dcm", "2.dcm"]


def test_table_aligns_numbers_right_and_leaves_missing_ones_empty() -> None:
    lines = table([("right", 1.5), ("left", None), ("both", 12.25)], ("hip", "score")).splitlines()
    assert lines == ["hip    score", "-----  -----", "right   1.50", "left", "both   12.25"]


def test_phantom_writes_images_and_truth(tmp_path: Path) -> None:
    code, output = _run("phantom", "--out", str(tmp_path), "--slices", "6", "--side", "left")
    assert code == 0, output
    images = sorted(tmp_path.glob("IM*.dcm"))
    assert len(images) == 6
    assert dcmread(images[0]).Modality == "MR"
    (truth,) = json.loads((tmp_path / "truth.json").read_text("utf-8"))
    assert truth["side"] == "left"
    assert 18 < truth["radius_mm"] < 30


def test_score_without_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image", "utf-8")
    code, output = _run("score", str(tmp_path), "--out", str(tmp_path / "out"))
    assert code == 1
    assert "no DICOM image" in output


def test_send_needs_a_peer_in_the_usual_form(tmp_path: Path) -> None:
    code, output = _run("send", str(tmp_path), "--to", "PACS:104")
    assert code == 2
    assert "AET@HOST:PORT" in output


def test_demo_leaves_a_folder_with_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    code, output = _run("demo", "--out", str(tmp_path))
    assert code == 1
    assert "holds other files" in output
    assert (tmp_path / "thesis.tex").exists()
