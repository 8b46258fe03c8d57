"""Locks and metadata: exact, hashed, complete, and silent about where things come from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("build", "run", "gpu", "dev")
PIN = re.compile(
    r"[a-z0-9-]+(\[[a-z0-9,]+\])?==[^ /@]+"
    r"( ; [A-Za-z_0-9.<>=!' ()]+)?"
    r"(\s+--hash=sha256:[0-9a-f]{64})+\s*"
)


def _normal(name: str) -> str:
    """Return a project name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _named(requirements: list[str]) -> set[str]:
    return {_normal(re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]) for line in requirements}


def _pins(lock: str) -> set[tuple[str, str]]:
    text = (ROOT / f"requirements/{lock}.lock").read_text()
    return set(re.findall(r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==([^ ;]+)", text, re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_versions_markers_and_hashes_and_nothing_else(lock: str) -> None:
    text = (ROOT / f"requirements/{lock}.lock").read_text().replace("\\\n", "")
    for line in text.splitlines():
        assert PIN.fullmatch(line), line[:100]


def test_the_runtime_is_locked_completely() -> None:
    optional = PROJECT["optional-dependencies"]
    run = {name for name, _ in _pins("run")}
    assert _named(PROJECT["dependencies"]) | _named(optional["cpu"]) <= run
    assert not run & (_named(optional["train"]) | _named(optional["dev"]) - {"jsonschema"})
    assert _named(optional["dev"]) <= {name for name, _ in _pins("dev")}


def test_what_is_tested_is_what_runs() -> None:
    assert _pins("run") <= _pins("dev")


def test_cpu_and_gpu_differ_in_what_runs_the_networks_only() -> None:
    only_cpu = {name for name, _ in _pins("run") - _pins("gpu")}
    only_gpu = {name for name, _ in _pins("gpu") - _pins("run")}
    assert only_cpu == {"onnxruntime", "openvino", "openvino-telemetry"}
    assert {name for name in only_gpu if not name.startswith("nvidia-")} == {"onnxruntime-gpu"}


def test_the_gpl_decoder_and_torch_stay_out() -> None:
    for lock in LOCKS:
        assert not {name for name, _ in _pins(lock)} & {"pylibjpeg-libjpeg", "torch"}
