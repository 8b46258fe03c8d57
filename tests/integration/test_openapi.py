"""Every route answers as the OpenAPI document says, whatever is sent to it.

Schemathesis reads the document of a running server and sends what fits it and what does not.
``make test-api`` does the same at length.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from hipscore import worker
from hipscore.settings import Settings
from tests import servers
from tests.integration import openapi_hooks
from tests.integration import shell_steps as steps
from tests.integration import workitem_steps as ups
from tests.integration.test_api import analysed, serving

SEED = 20260314
EXAMPLES = 8
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
#: what is really there is asked for more often than what is made up
_REAL = 0.8


@dataclass(frozen=True)
class Populated:
    """A server with studies in several states, and what its paths can be filled with."""

    client: httpx.Client
    image: Path
    parameters: dict[str, list[str | int]]


@pytest.fixture
def populated(settings: Settings, tmp_path: Path) -> Iterator[Populated]:
    destined = settings.model_copy(
        update={"destinations": (f"PACS@127.0.0.1:{servers.free_port()}",)}
    )
    # first those that may be retried and withdrawn: the smallest numbers are tried most
    waiting = steps.images(3)
    steps.received(destined, waiting, tmp_path / "waiting")
    unknown = steps.images(2)
    job = steps.received(destined, unknown, tmp_path / "unknown")
    with steps.bench(destined) as at:  # its Oracle sees no hip there
        worker.analyse(job.id, at)
    scored = analysed(destined, tmp_path / "scored")
    studies = [scored, *(str(each[0].StudyInstanceUID) for each in (unknown, waiting))]
    with serving(destined) as client:
        found = client.get("/fhir/Observation").json()["entry"]
        observations = [each["resource"]["id"] for each in found]
        images = client.get(f"/fhir/ImagingStudy/{scored}").json()["series"]
        workitem = ups.new_uid()
        created = client.post(
            f"/dicomweb/workitems?workitem={workitem}",
            content=json.dumps([ups.scheduled()]),
            headers={"Content-Type": ups.DICOM_JSON},
        )
        assert created.status_code == 201, created.text
        yield Populated(
            client=client,
            image=tmp_path / "waiting" / "0000.dcm",
            parameters={
                "kind": ["sr", "overlay", "pdf"],
                # mostly the one that has everything: some routes find nothing in the others
                "uid": [*[scored] * 6, *studies],
                "number": [1, 2, 3],
                "study": [*studies],
                "study_uid": [*studies],
                "series": [each["uid"] for each in images],
                "series_uid": [each["uid"] for each in images],
                "instance": [each["instance"][0]["uid"] for each in images],
                "instance_uid": [each["instance"][0]["uid"] for each in images],
                "resource_id": [*studies, *observations],
                "workitem": [workitem],
                "aet": ["VIEWER"],
                "job_id": [1, 2],
                "delivery_id": [1, 2],
            },
        )


def configuration(populated: Populated) -> str:
    """Settings of Schemathesis by which paths lead to what is there."""
    hooks = Path(__file__).with_name("openapi_hooks.py")
    lines = [f"hooks = {str(hooks)!r}"]
    for name, values in populated.parameters.items():
        lines += [f"[dictionaries.{name}]", f"values = {values!r}"]
    lines.append("[parameters]")
    lines += [
        f'"path.{name}" = {{ dictionary = "{name}", probability = {_REAL} }}'
        for name in populated.parameters
    ]
    return "\n".join(lines)


def explore(populated: Populated, folder: Path, *, examples: int) -> dict[str, Any]:
    """Let Schemathesis loose; its report, which must be that nothing is wrong."""
    settings_of_it = folder / "schemathesis.toml"
    settings_of_it.write_text(configuration(populated))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            f"--config-file={settings_of_it}",
            "run",
            f"{populated.client.base_url}/openapi.json",
            f"--checks={','.join(CHECKS)}",
            "--phases=examples,coverage,fuzzing",
            f"--max-examples={examples}",
            f"--seed={SEED}",
            "--generation-database=none",
            "--continue-on-failure",
            "--no-color",
            "--warnings=off",
            f"--report-json-path={folder / 'report.json'}",
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, openapi_hooks.IMAGE: str(populated.image)},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-30_000:] + done.stderr[-2_000:]
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def never_served(report: dict[str, Any]) -> set[str]:
    """Operations that were only refused: nothing was learned of what they answer."""
    return {
        operation
        for operation, phases in report["valid_rates"].items()
        if not sum(phase["accepted"] for phase in phases.values())
    }


@steps.sqlite_only
@pytest.mark.timeout(240)
def test_no_route_fails_and_none_answers_what_is_not_documented(
    populated: Populated, tmp_path: Path
) -> None:
    report = explore(populated, tmp_path, examples=EXAMPLES)
    documented = populated.client.get("/openapi.json").json()["paths"]
    operations = {
        f"{method.upper()} {path}" for path, methods in documented.items() for method in methods
    }
    assert report["operations"]["tested"] == len(operations)
    assert set(report["valid_rates"]) == operations
    # for a new parameter of a path, add what is there to `populated`
    assert not {each for each in never_served(report) if each.startswith("GET")}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_route_fails_at_length(populated: Populated, tmp_path: Path) -> None:
    assert explore(populated, tmp_path, examples=500)["complete"]
