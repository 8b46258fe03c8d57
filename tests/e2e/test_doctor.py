"""``hipscore doctor`` beside a running service: what it says of health, and of what is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from tests import servers
from tests.e2e.conftest import Service, hipscore
from tests.servers import LOOPBACK, free_port

# what it asks does not depend on the database: once is enough
pytestmark = pytest.mark.parametrize("service", ("embedded",), indirect=True)


def doctor(service: Service, *arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    """Exit status and report."""
    done = subprocess.run(
        [sys.executable, "-m", "hipscore", "doctor", "--json", *arguments],
        env={**service.environment, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def serving(service: Service) -> bool:
    """Whether both queues have a worker: the API answers before."""
    return not any(
        hipscore("workers", "--queue", queue, environment=service.environment).returncode
        for queue in ("analysis", "delivery")
    )


def said(report: dict[str, Any], what: str) -> list[str]:
    return [
        f"{each['level']}: {each['text']}" for each in report["findings"] if each["what"] == what
    ]


def test_a_healthy_service_passes_and_nothing_of_the_study_stays_or_reaches_the_pacs(
    service: Service,
) -> None:
    service.orthanc.add_modality("us", ae_title="HIPSCORE", port=service.dicom_port)
    servers.wait_until(partial(serving, service), what="workers of both queues")
    before = set(service.orthanc.find("Series"))
    listed = service.get("/studies").json()["items"]
    code, report = doctor(service)
    assert code == 0, report
    assert report["healthy"]
    looked_at = {each["what"] for each in report["findings"]}
    assert looked_at >= {
        "rules", "disk", "database", "clock", "broker", "workers", "model", "listener", "API",
        "PACS", "study",
    }  # fmt: skip
    stored, scored, removed = said(report, "study")
    assert "24 images stored" in stored
    assert scored.startswith("good: scored")
    assert removed.startswith("good: removed")
    assert any("SEG" in text for text in said(report, "PACS"))
    assert set(service.orthanc.find("Series")) == before
    assert service.get("/studies").json()["items"] == listed


def test_a_pacs_that_is_down_and_a_listener_that_is_not_there_are_at_fault(
    service: Service,
) -> None:
    nowhere = str(free_port())
    code, report = doctor(
        service,
        "--no-study",
        HIPSCORE_DESTINATIONS=f"GONE@{LOOPBACK}:{nowhere},mllp://{LOOPBACK}:{nowhere}",
        HIPSCORE_DICOM_PORT=nowhere,
    )
    assert code == 1
    faults = {each["what"]: each for each in report["findings"] if each["level"] == "fault"}
    assert set(faults) == {"PACS", "HL7", "listener"}
    assert all(each["remedy"] for each in faults.values())
    assert f"GONE@{LOOPBACK}:{nowhere} cannot be reached" in faults["PACS"]["text"]


def test_a_wrong_rules_file_and_database_are_named_without_secrets(service: Service) -> None:
    code, report = doctor(
        service,
        "--no-study",
        HIPSCORE_RULES="/nowhere/rules.toml",
        HIPSCORE_DATABASE_URL=f"postgresql+psycopg://me:s3cret@{LOOPBACK}:{free_port()}/none",
    )
    assert code == 1
    assert "/nowhere/rules.toml" in said(report, "rules")[0]
    assert said(report, "database")[0].startswith("fault")
    assert "s3cret" not in json.dumps(report)
