"""docker-compose.yml, the image and the units: they agree with the program they start."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from hipscore.cli import group
from hipscore.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
VIEWER = yaml.safe_load((ROOT / "deploy" / "docker-compose.viewer.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: body for name, body in SERVICES.items() if body["image"].startswith("hipscore:")}
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
INSTANCES = {
    "hipscore@.service": ("listen", "beat", "serve"),
    "hipscore-work@.service": ("analysis", "delivery"),
}
ONE_SHOT = {"migrate"}
#: ${NAME}, ${NAME:-default}, ${NAME:?message}
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def _parse(arguments: list[str]) -> click.Command:
    """Parse a command line as ``hipscore`` would, without running it."""
    command: click.Command = group
    context = click.Context(group, info_name="hipscore")
    while isinstance(command, click.Group):
        name, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command = found
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=name, parent=context)
    command.make_context(command.name, arguments, parent=context)
    return command


def _env_file(path: Path) -> dict[str, str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


EXAMPLE = _env_file(ROOT / ".env.example")


def _fill(text: object) -> str:
    """Interpolate as Compose does, with .env.example and its passwords filled in."""
    values = {
        name: "secret" if name.endswith("_PASSWORD") else value for name, value in EXAMPLE.items()
    }

    def value_of(found: re.Match[str]) -> str:
        default = found["rest"] if found["kind"] == "-" else ""
        return values.get(found["name"]) or default

    return VARIABLE.sub(value_of, str(text))


def _strings(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)
    else:
        yield str(node)


def test_there_is_one_service_for_each_process_of_hipscore() -> None:
    started = {name: _parse(list(body["command"])).name for name, body in OURS.items()}
    assert started == {
        "migrate": "upgrade",
        "listener": "listen",
        "worker": "work",
        "delivery": "work",
        "beat": "beat",
        "api": "serve",
    }


@pytest.mark.parametrize("service", OURS)
def test_the_settings_of_a_service_exist_and_are_accepted(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {name: _fill(value) for name, value in OURS[service]["environment"].items()}
    ours = {name for name in environment if name != "TZ"}
    assert {name.removeprefix("HIPSCORE_").lower() for name in ours} <= set(Settings.model_fields)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.database == "postgresql+psycopg://hipscore:secret@database:5432/hipscore"
    assert settings.broker == "redis://broker:6379/0"
    assert [str(peer) for peer in settings.destinations] == ["ORTHANC@pacs:4242"]


@pytest.mark.parametrize(
    "path",
    (".env.example", "deploy/systemd/hipscore.env.example", "deploy/Dockerfile"),
)
def test_every_setting_that_is_named_exists(path: str) -> None:
    named = set(re.findall(r"\bHIPSCORE_([A-Z_]+)\b", (ROOT / path).read_text()))
    assert named
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_every_image_is_pinned_to_an_exact_version() -> None:
    images = [body["image"] for body in SERVICES.values()]
    images += re.findall(r"^FROM (\S+)", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    for image in images:
        assert re.search(r":\d+\.\d+(\.\d+)?(-[a-z]+)*$", image), image


@pytest.mark.parametrize("service", sorted(set(SERVICES) - ONE_SHOT))
def test_a_long_running_service_is_watched_and_restarted(service: str) -> None:
    body = SERVICES[service]
    assert body["restart"] == "unless-stopped"
    assert body["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries"} <= set(body["healthcheck"])


def test_our_services_start_after_the_migration_and_the_migration_after_the_database() -> None:
    assert SERVICES["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    for name in set(OURS) - ONE_SHOT:
        condition = OURS[name]["depends_on"]["migrate"]["condition"]
        assert condition == "service_completed_successfully", name


def test_the_broker_never_evicts_and_keeps_an_append_only_file() -> None:
    command = " ".join(SERVICES["broker"]["command"])
    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command
    assert "broker:/data" in SERVICES["broker"]["volumes"]


def test_database_and_broker_are_reachable_by_our_services_only() -> None:
    assert COMPOSE["networks"]["internal"] == {"internal": True}
    for name in ("database", "broker"):
        assert SERVICES[name]["networks"] == ["internal"]
        assert "ports" not in SERVICES[name]
    assert {name for name, body in SERVICES.items() if "internal" in body["networks"]} == {
        *OURS,
        "database",
        "broker",
    }


def test_each_queue_has_a_worker_of_its_own_whose_own_heartbeat_is_looked_at() -> None:
    for name, queue in (("worker", "analysis"), ("delivery", "delivery")):
        assert OURS[name]["command"] == ["work", "--queue", queue]
        kind, program, *arguments = OURS[name]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "hipscore")
        assert arguments == ["workers", "--queue", queue, "--here"]
        _parse(arguments)


def test_the_time_zone_of_the_reports_is_that_of_the_operator() -> None:
    for name in OURS:
        assert OURS[name]["environment"]["TZ"] == "${TZ:-UTC}", name


def test_who_speaks_dicom_to_the_pacs_is_in_its_network() -> None:
    assert {name for name, body in SERVICES.items() if "dicom" in body["networks"]} == {
        "listener",
        "worker",  # orders and earlier reports
        "delivery",
        "beat",  # how many images a series has
        "pacs",
    }


def test_ports_are_offered_on_this_machine_only_unless_the_operator_says_otherwise() -> None:
    for body in SERVICES.values():
        for port in body.get("ports", []):
            assert re.match(r"\$\{(DICOM|HTTP)_BIND:-127\.0\.0\.1\}:", port), port


def test_published_ports_are_those_the_processes_bind() -> None:
    for name, setting in (("listener", "DICOM"), ("api", "HTTP")):
        environment = SERVICES[name]["environment"]
        assert environment[f"HIPSCORE_{setting}_HOST"] == "0.0.0.0"  # noqa: S104 - in a container
        port = environment[f"HIPSCORE_{setting}_PORT"]
        assert SERVICES[name]["ports"] == [f"${{{setting}_BIND:-127.0.0.1}}:{port}:{port}"]


def test_our_containers_run_without_privileges_on_a_read_only_root() -> None:
    for name, body in OURS.items():
        assert body["read_only"] is True, name
        assert body["cap_drop"] == ["ALL"], name
        assert body["security_opt"] == ["no-new-privileges:true"], name


def test_volumes_and_networks_are_declared_and_used() -> None:
    bodies = [*SERVICES.values(), *VIEWER["services"].values()]
    mounted = {
        _fill(volume).partition(":")[0] for body in bodies for volume in body.get("volumes", [])
    }
    assert {name for name in mounted if not name.startswith(".")} == set(COMPOSE["volumes"])
    assert all((ROOT / name).exists() for name in mounted if name.startswith("."))
    joined = {network for body in SERVICES.values() for network in body["networks"]}
    assert joined == set(COMPOSE["networks"])


def test_every_variable_of_compose_is_explained_in_the_example() -> None:
    texts = [*_strings(COMPOSE), *_strings(VIEWER)]
    used = {found["name"] for text in texts for found in VARIABLE.finditer(text)}
    assert used == set(EXAMPLE)


def test_no_secret_is_committed() -> None:
    secrets = ("_PASSWORD", "_BASIC")
    assert not any(value for name, value in EXAMPLE.items() if name.endswith(secrets))
    assert {name for name in EXAMPLE if name.endswith("_PASSWORD")} == {
        "POSTGRES_PASSWORD",
        "ORTHANC_PASSWORD",
    }
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_gpu_override_changes_the_worker_only_and_names_a_lock_that_exists() -> None:
    override = yaml.safe_load((ROOT / "deploy" / "docker-compose.gpu.yml").read_text())
    assert list(override["services"]) == ["worker"]
    lock = override["services"]["worker"]["build"]["args"]["LOCK"]
    names = re.findall(
        r"^(onnxruntime\S*)==", (ROOT / f"requirements/{lock}.lock").read_text(), re.MULTILINE
    )
    assert names == ["onnxruntime-gpu"]
    assert override["services"]["worker"]["image"] != SERVICES["worker"]["image"]


def test_the_viewer_override_has_the_viewer_that_was_tried_behind_one_origin() -> None:
    assert VIEWER["services"]["viewer"]["image"] == "ohif/app:v3.13.2"
    assert "3.13.2" in (ROOT / "scripts" / "viewer.py").read_text()
    proxy = (ROOT / "deploy" / "ohif" / "nginx.conf.template").read_text()
    config = (ROOT / "deploy" / "ohif" / "app-config.js").read_text()
    assert "location /dicom-web/" in proxy
    assert "qidoRoot: '/dicom-web'" in config
    assert VIEWER["services"]["viewer"]["ports"] == ["${HTTP_BIND:-127.0.0.1}:3000:80"]


def test_the_image_is_built_from_what_is_in_its_context_and_runs_as_nobody_special() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [
        source.rstrip("/")
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for source in shlex.split(line)[1:-1]
    ]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(rule.startswith(f"!{source}") for rule in allowed), source
    assert [line for line in lines if line.startswith("USER ")] == ["USER hipscore"]
    assert 'ENTRYPOINT ["hipscore"]' in lines
    command = next(line for line in lines if line.startswith("CMD "))
    _parse(json.loads(command.removeprefix("CMD ")))


def test_orthanc_and_hipscore_know_each_other() -> None:
    orthanc = json.loads((ROOT / "deploy" / "orthanc" / "orthanc.json").read_text())
    us = orthanc["DicomModalities"]["hipscore"]
    listener = SERVICES["listener"]["environment"]
    assert us["AET"] == _fill(listener["HIPSCORE_AE_TITLE"])
    assert us["Host"] == "listener"
    assert us["Port"] == listener["HIPSCORE_DICOM_PORT"]
    assert EXAMPLE["HIPSCORE_DESTINATIONS"] == f"{orthanc['DicomAet']}@pacs:{orthanc['DicomPort']}"


def test_a_worker_that_ended_by_itself_is_started_again() -> None:
    """One that lost its engine ends in an orderly way, with exit code 0."""
    text = next(unit for unit in UNITS if unit.name == "hipscore-work@.service").read_text()
    assert "\nRestart=always\n" in text


def test_there_is_a_unit_for_each_process() -> None:
    assert {unit.name for unit in UNITS} == {"hipscore-migrate.service", *INSTANCES}


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_systemd_unit_starts_a_command_that_exists(unit: Path) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    executable, *arguments = shlex.split(parser["Service"]["ExecStart"])
    assert executable == "/opt/hipscore/bin/hipscore"
    for process in INSTANCES.get(unit.name, ("",)):
        _parse([argument.replace("%i", process) for argument in arguments])
    assert parser["Service"]["User"] == "hipscore"
