"""What an operator can set, where from, and what a wrong value says."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hipscore.addresses import Peer, ae_title
from hipscore.settings import Settings, unknown_variables

PRINTABLE = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\\@"),
    min_size=1,
    max_size=16,
)


# --- peers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "peer"),
    (
        ("PACS@10.0.0.5:104", ("PACS", "10.0.0.5", 104)),
        (" PACS @pacs.example.org:11112 ", ("PACS", "pacs.example.org", 11112)),
        ("A B@[::1]:4242", ("A B", "::1", 4242)),
        ("PACS@[::ffff:10.0.0.5]:4242", ("PACS", "::ffff:10.0.0.5", 4242)),
        ("PACS@localhost:65535", ("PACS", "localhost", 65535)),
    ),
)
def test_a_peer_is_written_title_at_host_colon_port(text: str, peer: tuple[str, str, int]) -> None:
    found = Peer.parse(text)
    assert (found.ae_title, found.host, found.port) == peer
    assert Peer.parse(str(found)) == found


@given(title=PRINTABLE, port=st.integers(1, 65535))
def test_a_peer_reads_what_it_writes(title: str, port: int) -> None:
    peer = Peer(ae_title=title, host="pacs", port=port)
    assert Peer.parse(str(peer)) == peer


@pytest.mark.parametrize(
    "text",
    (
        "",
        "PACS",
        "PACS@host",
        "@host:104",
        "PACS@:104",
        "PACS@host:0",
        "PACS@host:65536",
        "PACS@host:٣",
        "PACS@ho st:104",
        "PACS@http://host:104",
        "PACS@::1:104",
        "A_TITLE_OF_17_CHAR@host:104",
        "PA\\CS@host:104",
        "  @host:104",
        "PÄCS@host:104",
    ),
)
def test_what_is_no_peer_is_named_in_the_message(text: str) -> None:
    with pytest.raises(ValueError, match="is not a") as caught:
        Peer.parse(text)
    assert repr(text)[1:4] in str(caught.value)


@pytest.mark.parametrize(("title", "port"), (("PA\\CS", 104), ("PACS", 0), ("", 104)))
def test_a_peer_made_of_parts_is_checked_too(title: str, port: int) -> None:
    with pytest.raises(ValidationError):
        Peer(ae_title=title, host="pacs", port=port)


@pytest.mark.parametrize("text", ("", "   ", "A\\B", "SEVENTEEN_LETTERS", "tab\t", "ü"))
def test_what_is_no_title(text: str) -> None:
    with pytest.raises(ValueError, match="is not an AE title"):
        ae_title(text)


def test_spaces_around_a_title_do_not_count() -> None:
    assert ae_title("  A TITLE ") == "A TITLE"
    assert ae_title("SIXTEEN_LETTERS_ ") == "SIXTEEN_LETTERS_"


# --- defaults -------------------------------------------------------------------------------


def test_without_any_setting_everything_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    settings = Settings()
    assert settings.data_dir == Path("/home/ann/.local/share/hipscore")
    assert settings.database == f"sqlite:///{settings.data_dir}/hipscore.db"
    assert settings.broker_socket == settings.data_dir / "broker" / "valkey.sock"
    assert settings.broker == f"redis+socket://{settings.data_dir}/broker/valkey.sock"
    assert settings.ae_title == "HIPSCORE"
    assert (settings.dicom_host, settings.dicom_port) == ("127.0.0.1", 11112)
    assert (settings.http_host, settings.http_port) == ("127.0.0.1", 8080)
    assert settings.destinations == ()
    assert settings.bundle_dir is None


def test_the_data_directory_follows_the_desktop_standard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Settings().data_dir == tmp_path / "hipscore"


def test_two_data_directories_share_no_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    short = Settings(data_dir=Path("/srv/a")).broker_socket
    first, second = (Settings(data_dir=deep / name).broker_socket for name in "ab")
    assert len({short, first, second}) == 3
    assert max(len(str(path)) for path in (first, second)) < 100
    assert Settings(data_dir=deep / "a").broker_socket == first


# --- environment and file -------------------------------------------------------------------


def test_the_environment_sets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DATA_DIR": "/srv/hipscore",
        "AE_TITLE": "MY_TITLE",
        "DICOM_PORT": "104",
        "DATABASE_URL": "postgresql+psycopg://user:secret@db/hipscore",
        "BROKER_URL": "redis://broker:6379/0",
        "DESTINATIONS": "PACS@10.0.0.5:104, VIEWER@[::1]:11113,",
        "QUIET_SECONDS": "2.5",
        "LOG_LEVEL": "debug",
    }.items():
        monkeypatch.setenv(f"HIPSCORE_{name}", value)
    settings = Settings()
    assert settings.data_dir == Path("/srv/hipscore")
    assert settings.ae_title == "MY_TITLE"
    assert settings.dicom_port == 104
    assert settings.database == "postgresql+psycopg://user:secret@db/hipscore"
    assert settings.broker == "redis://broker:6379/0"
    assert [str(peer) for peer in settings.destinations] == [
        "PACS@10.0.0.5:104",
        "VIEWER@[::1]:11113",
    ]
    assert settings.quiet_seconds == 2.5
    assert settings.log_level == "DEBUG"


def test_the_broker_is_embedded_unless_another_is_named(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path).broker_embedded
    for url, embedded in (
        (f"redis+socket://{tmp_path}/broker/valkey.sock", True),
        (f"redis+socket://{tmp_path}/other.sock", False),
        ("redis://broker:6379/0", False),
    ):
        named = Settings.model_validate({"data_dir": tmp_path, "broker_url": url})
        assert named.broker_embedded is embedded, url


def test_hosts_are_names_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIPSCORE_HTTP_ALLOWED_HOSTS", "Hip.Example.org, api,")
    assert Settings().http_allowed_hosts == ("hip.example.org", "api")
    monkeypatch.setenv("HIPSCORE_HTTP_ALLOWED_HOSTS", "*")
    assert Settings().http_allowed_hosts == ("*",)


def test_variables_that_are_no_settings_are_found() -> None:
    environment = {
        "HIPSCORE_CONFIG": "",
        "HIPSCORE_AE_TITLE": "",
        "hipscore_http_port": "",
        "PATH": "",
        "HIPSCORE_AETITLE": "",
        "HIPSCORE_COLOUR": "",
    }
    assert unknown_variables(environment) == {
        "HIPSCORE_AETITLE": "HIPSCORE_AE_TITLE",
        "HIPSCORE_COLOUR": None,
    }


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "BROKER_URL", "DESTINATIONS", "BUNDLE_DIR", "DICOM_PORT"):
        monkeypatch.setenv(f"HIPSCORE_{name}", "")
    settings = Settings()
    assert settings.database.startswith("sqlite:///")
    assert settings.destinations == ()
    assert settings.bundle_dir is None
    assert settings.dicom_port == 11112


def test_home_is_found_without_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HIPSCORE_DATA_DIR", "~/hips")
    monkeypatch.setenv("HIPSCORE_BUNDLE_DIR", "~/bundle")
    assert Settings().data_dir == tmp_path / "hips"
    assert Settings().bundle_dir == tmp_path / "bundle"


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "hipscore.toml"
    monkeypatch.setenv("HIPSCORE_CONFIG", str(path))
    return path


def test_arguments_over_environment_over_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(
        'ae_title = "FILE"\ndicom_port = 1104\nhttp_port = 8081\n'
        'destinations = ["PACS@host:104", "B@host:105"]\n',
        "utf-8",
    )
    monkeypatch.setenv("HIPSCORE_AE_TITLE", "ENVIRONMENT")
    monkeypatch.setenv("HIPSCORE_DICOM_PORT", "2104")
    settings = Settings(dicom_port=3104)
    assert (settings.dicom_port, settings.ae_title, settings.http_port) == (
        3104,
        "ENVIRONMENT",
        8081,
    )
    assert [peer.port for peer in settings.peers] == [104, 105]


def test_destinations_of_the_file_may_be_tables(file: Path) -> None:
    file.write_text('[[destinations]]\nae_title = "PACS"\nhost = "10.0.0.5"\nport = 104\n', "utf-8")
    assert str(Settings().destinations[0]) == "PACS@10.0.0.5:104"


def test_destinations_of_another_form_are_an_error(file: Path) -> None:
    file.write_text("destinations = 104\n", "utf-8")
    with pytest.raises(ValidationError, match="destinations"):
        Settings()


def test_a_misspelt_key_of_the_file_is_an_error(file: Path) -> None:
    file.write_text("quite_seconds = 3\n", "utf-8")
    with pytest.raises(ValidationError, match="quite_seconds"):
        Settings()


def test_a_file_that_is_not_there_is_an_error(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"HIPSCORE_CONFIG names .*hipscore\.toml"):
        Settings()


def test_a_file_that_is_no_toml_is_an_error(file: Path) -> None:
    file.write_text("ae_title: HIPSCORE\n", "utf-8")
    with pytest.raises(ValueError, match="line 1"):
        Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    (
        ("AE_TITLE", "A_TITLE_OF_17_CHAR"),
        ("AE_TITLE", "A\\B"),
        ("DICOM_PORT", "0"),
        ("DICOM_PORT", "65536"),
        ("HTTP_PORT", "http"),
        ("DESTINATIONS", "PACS"),
        ("HTTP_ALLOWED_HOSTS", "http://hip.example.org"),
        ("HTTP_ALLOWED_HOSTS", "hip.example.org:8080"),
        ("QUIET_SECONDS", "0"),
        ("QUIET_SECONDS", "inf"),
        ("LEASE_SECONDS", "nan"),
        ("MIN_HEAD_AREA_MM2", "-1"),
        ("MAX_ATTEMPTS", "0"),
        ("THREADS", "-1"),
        ("LOG_LEVEL", "LOUD"),
    ),
)
def test_a_wrong_value_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"HIPSCORE_{name}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [error["loc"][0] for error in caught.value.errors()] == [name.lower()]


def test_every_log_level_is_one_of_pythons() -> None:
    for level in ("DEBUG", "INFO", "WARNING", "ERROR"):
        assert Settings(log_level=level).log_level in logging.getLevelNamesMapping()


def test_passwords_are_not_shown() -> None:
    settings = Settings.model_validate(
        {"database_url": "postgresql://u:hunter2@db/x", "broker_url": "redis://:hunter2@b/0"}
    )
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().dicom_port = 4  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
