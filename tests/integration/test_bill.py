"""The bill of materials names what the lock names, and refuses what is not permissive."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def judge(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts/bill.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written for the environment that runs the tests."""
    out = tmp_path_factory.mktemp("bill")
    done = judge("--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def bill(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "sbom.cdx.json").read_text("utf-8"))
    return read


def pins() -> set[tuple[str, str]]:
    """Of the runtime lock, those for this Python and platform."""
    text = (ROOT / "requirements/run.lock").read_text("utf-8")
    lines = re.findall(r"^[a-z0-9][^\\\n]*", text, re.MULTILINE)
    wanted = [Requirement(line) for line in lines]
    return {
        (each.name, next(iter(each.specifier)).version)
        for each in wanted
        if each.marker is None or each.marker.evaluate()
    }


def test_it_names_exactly_what_the_lock_names(bill: dict[str, Any]) -> None:
    named = {
        (re.sub(r"[-_.]+", "-", each["name"]).lower(), each["version"])
        for each in bill["components"]
    }
    # tools for development may bring one that the lock has for other platforms only
    assert pins() <= named
    assert {name for name, _ in named} <= set(
        re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements/run.lock").read_text(), re.MULTILINE)
    )
    assert bill["metadata"]["component"]["name"] == "hipscore"


def test_it_is_valid_cyclonedx(folder: Path) -> None:
    text = (folder / "sbom.cdx.json").read_text("utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_every_package_stands_in_the_list_with_its_licence(
    folder: Path, bill: dict[str, Any]
) -> None:
    text = (folder / "LICENCES.md").read_text("utf-8")
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (\S+) \| ([^|]+) \|$", text, re.MULTILINE)
    assert len(rows) - 1 == len(bill["components"])  # the line of headings
    assert all(licence.strip() not in ("", "not said") for *_, licence in rows[1:])


@pytest.mark.parametrize(
    ("licences", "complaint"),
    (
        ([{"license": {"id": "GPL-3.0-only"}}], "GPL-3.0-only"),
        ([{"expression": "MIT AND AGPL-3.0-or-later"}], "AGPL-3.0-or-later"),
        ([{"license": {"id": "MIT"}}, {"license": {"id": "GPL-2.0-only"}}], "GPL-2.0-only"),
        ([{"license": {"id": "LGPL-3.0-only"}}], "LGPL-3.0-only"),
        ([{"license": {"name": "License :: Other/Proprietary License"}}], "Proprietary"),
        ([], "not said"),
    ),
)
def test_what_is_not_permissive_or_not_said_fails(
    bill: dict[str, Any], tmp_path: Path, licences: list[dict[str, Any]], complaint: str
) -> None:
    bill["components"].append({"name": "Sly_Package", "version": "1.0", "licenses": licences})
    file = tmp_path / "bill.json"
    file.write_text(json.dumps(bill))
    done = judge("--check", file)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("sly-package 1.0: ")
    assert complaint in done.stderr


def test_the_bill_as_it_is_passes(folder: Path) -> None:
    assert judge("--check", folder / "sbom.cdx.json").returncode == 0
