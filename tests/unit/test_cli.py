"""The command line without servers: help, settings, tables, files in."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom import dcmread

from hipscore import pipeline
from hipscore.addresses import Peer
from hipscore.cli import COMMANDS, group
from hipscore.cli.common import files_in, table
from hipscore.cli.demo import _settings as demo_settings
from hipscore.cli.maintain import masked
from hipscore.cli.score import _series_in, result_of
from hipscore.cli.supervise import environment
from hipscore.domain import Engine
from hipscore.settings import Settings
from tests import stacks
from tests.analytic import Oracle


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
    assert values["database_url"] == "postgresql+psycopg://hip:********@db/hip"
    assert values["ae_title"] == "HIP2"
    assert "open-sesame" not in output
    assert "open-sesame" not in _run("config", HIPSCORE_DATABASE_URL=url)[1]


def test_config_shows_the_database_and_the_broker_in_force(tmp_path: Path) -> None:
    code, output = _run("config", "--json", HIPSCORE_DATA_DIR=str(tmp_path))
    assert code == 0
    values = json.loads(output)
    assert values["database_url"] == f"sqlite:///{tmp_path}/hipscore.db"
    assert values["broker_url"] == f"redis+socket://{tmp_path}/broker/valkey.sock"


@pytest.mark.parametrize(
    ("url", "shown"),
    (
        ("redis://broker:6379/0", "redis://broker:6379/0"),
        ("redis://:geheim@broker:6379/0", "redis://:********@broker:6379/0"),
        ("postgresql://hip:ge@he/im#1@db/hip", "postgresql://hip:********@db/hip"),
        ("postgresql://hip@db/hip?password=geheim&x=1", "postgresql://hip@db/hip?password=********&x=1"),
        ("hip:geheim@db", "********"),
        ("sqlite:////srv/hipscore.db", "sqlite:////srv/hipscore.db"),
    ),
)  # fmt: skip
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_a_misspelt_variable_is_named_with_the_one_that_was_meant() -> None:
    result = CliRunner(env={"HIPSCORE_QUITE_SECONDS": "3"}).invoke(group, ["config", "--json"])
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert "HIPSCORE_QUITE_SECONDS" in line
    assert line.endswith("did you mean HIPSCORE_QUIET_SECONDS?")
    assert json.loads(result.stdout)["quiet_seconds"] == 30.0


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


@pytest.mark.computes
def test_phantom_writes_images_and_truth(tmp_path: Path) -> None:
    out = tmp_path / "study"
    code, output = _run("phantom", "--out", str(out), "--slices", "6", "--side", "left")
    assert code == 0, output
    images = sorted(out.iterdir())  # nothing else: a folder of images is sent as a whole
    assert len(images) == 6
    assert dcmread(images[0]).Modality == "MR"
    (truth,) = json.loads((tmp_path / "study-truth.json").read_text("utf-8"))
    assert truth["side"] == "left"
    assert 18 < truth["radius_mm"] < 30


@pytest.mark.computes
def test_the_same_phantom_at_another_time_is_another_study_of_the_patient(tmp_path: Path) -> None:
    for name, day in (("first", "2024-01-02"), ("second", "2024-07-02"), ("third", "2024-09-02")):
        more = ("--study-date", day, "--accession", "A-1", "--slices", "1", "--side", "left")
        code, output = _run("phantom", "--out", str(tmp_path / name), *more)
        assert code == 0, output
    first, second, third = (
        dcmread(tmp_path / name / "IM0001.dcm") for name in ("first", "second", "third")
    )
    assert first.PatientID == second.PatientID == third.PatientID == "HIPSCORE-1"
    assert [each.StudyDate for each in (first, second, third)] == [
        "20240102", "20240702", "20240902",
    ]  # fmt: skip
    assert second.AccessionNumber == "A-1"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert len({str(each[keyword].value) for each in (first, second, third)}) == 3


@pytest.mark.parametrize("value", ("a\\b", "x" * 17, "a\x1b"))
def test_what_cannot_be_an_accession_number_is_wrong_usage(tmp_path: Path, value: str) -> None:
    code, output = _run("phantom", "--out", str(tmp_path / "study"), "--accession", value)
    assert code == 2
    assert "16 characters" in output


def test_score_without_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image", "utf-8")
    code, output = _run("score", str(tmp_path), "--out", str(tmp_path / "out"))
    assert code == 1
    assert "no DICOM image" in output


@pytest.mark.parametrize("keyword", ("SeriesInstanceUID", "StudyInstanceUID"))
@pytest.mark.parametrize("uid", ("../../escaped", "/escaped", "..", "1.2/3", "", None))
def test_score_leaves_images_out_whose_uids_are_none(
    tmp_path: Path, keyword: str, uid: str | None
) -> None:
    image = stacks.coronal()[0]
    image.add_new(keyword, "LO", uid)  # pydicom would complain of the value of a UI
    image[keyword].VR = "UI"
    image.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    before = set(tmp_path.rglob("*"))
    code, output = _run("score", str(tmp_path / "image.dcm"), "--out", str(tmp_path / "a" / "b"))
    assert code == 1
    assert "no DICOM image" in output
    assert "(1 other files)" in output
    assert set(tmp_path.rglob("*")) == before


def test_series_of_two_studies_are_two_also_with_the_same_uid(tmp_path: Path) -> None:
    files = []
    for number, study in enumerate(("1.2.3", "1.2.3", "1.2.4")):
        image = stacks.coronal()[number]
        image.StudyInstanceUID = study
        files.append(tmp_path / f"{number}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
    found, ignored = _series_in([tmp_path])
    assert ignored == 0
    assert [(each.folder, len(each.files)) for each in found] == [
        ("1.2.3/1.2.3.4.5", 2),
        ("1.2.4/1.2.3.4.5", 1),
    ]
    assert [each.folder for each in _series_in(files[:2])[0]] == ["1.2.3.4.5"]


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


def test_demo_keeps_out_of_the_service_of_the_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "BROKER_URL": "redis://production:6379/0",
        "DATABASE_URL": "postgresql://production/hip",
        "DESTINATIONS": "PACS@10.0.0.5:104",
        "DATA_DIR": "/srv/hipscore",
        "DICOM_HOST": "10.0.0.9",
        "QUIET_SECONDS": "600",
        "RESERVE_MB": "100000000",
        "BUNDLE_DIR": "/srv/bundle",
    }.items():
        monkeypatch.setenv(f"HIPSCORE_{name}", value)
    sink = Peer(ae_title="SINK", host="127.0.0.1", port=104)
    settings = demo_settings(tmp_path, sink)
    assert settings.broker_embedded
    assert settings.broker == f"redis+socket://{tmp_path}/broker/valkey.sock"
    assert settings.database == f"sqlite:///{tmp_path}/hipscore.db"
    assert settings.destinations == (sink,)
    assert settings.dicom_host == "127.0.0.1"
    assert (settings.quiet_seconds, settings.reserve_mb) == (30.0, 512)
    assert settings.bundle_dir == Path("/srv/bundle")
    assert "production" not in str(environment(settings))


def test_a_child_gets_exactly_the_settings_of_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Settings(
        data_dir=tmp_path,
        http_allowed_hosts=("hip.example.org", "hip"),
        destinations=(Peer.parse("PACS@10.0.0.5:104"), Peer.parse("B@[::1]:105")),
        lease_seconds=7.5,
    )
    for name, value in environment(given).items():
        monkeypatch.setenv(name, value)
    child = Settings()
    assert child.broker_embedded
    assert (child.broker, child.database) == (given.broker, given.database)
    same = set(Settings.model_fields) - {"broker_url", "database_url"}
    assert child.model_dump(include=same) == given.model_dump(include=same)


class Unasked(Oracle):
    """Networks that nobody shall ask."""

    @property
    def engine(self) -> Engine:
        raise AssertionError("no network was asked")


def test_what_no_network_was_asked_about_names_no_engine() -> None:
    images = stacks.coronal()
    images[0].Modality = "CT"
    analysis = pipeline.analyse(images, Unasked())
    result = result_of(analysis, Unasked(), created_at=datetime.now(UTC), artifacts={})
    assert result["reason"]["code"] == "not_mr"
    assert result["engine"] is None
