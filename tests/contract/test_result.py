"""The result document: one shape for REST, the command line and the store."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import resources
from typing import Any, get_args

import jsonschema
import pytest

from hipscore.domain import Remark
from hipscore.reporting.result import Status, result_json
from tests.contract.factories import CARD, CASES, CONTEXT, TOO_FEW, case

SCHEMA = json.loads(
    resources.files("hipscore.reporting").joinpath("result.schema.json").read_text()
)
STUDY, SERIES = "1.2.3", "1.2.3.4"


def check(document: dict[str, Any]) -> None:
    """Raise unless the document follows the schema; also proves that it is JSON."""
    text = json.dumps(document, allow_nan=False)
    checker = jsonschema.Draft202012Validator(SCHEMA)
    checker.validate(json.loads(text))


def of(name: str) -> dict[str, Any]:
    findings = case(name).findings
    return result_json(
        study_uid=STUDY,
        series_uid=SERIES,
        status="scored" if findings.scored else "not_scorable",
        findings=findings,
        card=CARD,
        created_at=CONTEXT.created_at,
        supersedes=None,
        artifacts={"sr": "a", "overlay": "b"},
    )


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]["status"]["enum"]) == set(get_args(Status))


@pytest.mark.parametrize("name", list(CASES))
def test_every_case_follows_the_schema(name: str) -> None:
    check(of(name))


def test_a_scored_series_carries_the_numbers_unrounded() -> None:
    source, document = case("scored"), of("scored")
    assert document["status"] == "scored"
    assert document["reason"] is None
    assert document["unet_score"] == source.findings.unet_score
    assert document["created_at"] == "2024-01-02T13:30:15.250000+00:00"
    assert document["model"] == {"id": CARD.id, "version": CARD.version, "sha256": CARD.sha256}
    assert [hip["side"] for hip in document["hips"]] == ["right", "left"]
    for hip, found in zip(document["hips"], source.findings.hips, strict=True):
        assert hip["unet_score"] == pytest.approx(sum(item["ratio"] for item in hip["slices"]))
        assert hip["mean_ratio"] == pytest.approx(hip["unet_score"] / hip["slices_used"])
        assert hip["slices_used"] == len(hip["slices"])
        assert hip["synovitis_ml"] == found.synovitis_ml
        assert hip["centre_mm"] == list(found.hip.centre_mm)
    assert sum(hip["unet_score"] for hip in document["hips"]) == document["unet_score"]


def test_slices_name_their_instance_and_in_an_enhanced_image_their_frame() -> None:
    single = of("scored")["hips"][0]["slices"][0]
    source = case("scored").findings.hips[0].slices[0].source
    assert single["sop_instance_uid"] == source.sop_instance_uid
    assert single["instance_number"] == source.instance_number
    assert "frame_number" not in single
    slices = of("enhanced")["hips"][0]["slices"]
    assert len({item["sop_instance_uid"] for item in slices}) == 1
    assert len({item["frame_number"] for item in slices}) == len(slices)


def test_a_series_that_is_not_scorable_says_why() -> None:
    document = of("not scorable")
    assert document["status"] == "not_scorable"
    assert document["reason"] == {"code": TOO_FEW.code, "text": TOO_FEW.text}
    assert document["unet_score"] is None
    assert document["hips"] == []


def test_one_hip_of_two_is_scored_and_remarked() -> None:
    document = of("one hip of two scored")
    assert [hip["status"] for hip in document["hips"]] == ["scored", "not_scorable"]
    assert document["hips"][1]["reason"]["code"] == "too_few_slices"
    assert document["hips"][1]["unet_score"] is None
    assert [remark["code"] for remark in document["quality"]] == ["one_hip_only"]


@pytest.mark.parametrize("status", ("queued", "analysing"))
def test_pending_has_nothing_but_its_identity(status: Status) -> None:
    document = result_json(
        study_uid=STUDY,
        series_uid=SERIES,
        status=status,
        findings=None,
        card=None,
        created_at=None,
    )
    check(document)
    assert document["unet_score"] is None
    assert document["artifacts"] == {}


def test_a_failure_gives_its_reason() -> None:
    document = result_json(
        study_uid=STUDY,
        series_uid=SERIES,
        status="failed",
        findings=None,
        card=None,
        created_at=datetime(2024, 1, 2, tzinfo=UTC),
        reason=Remark(code="internal_error", text="see the log"),
    )
    check(document)
    assert document["reason"] == {"code": "internal_error", "text": "see the log"}


@pytest.mark.parametrize(
    "fault",
    (
        {"status": "done"},
        {"unet_score": None},
        {"reason": {"code": "x", "text": "y"}},
        {"model": None},
        {"study_instance_uid": "study 1"},
        {"unexpected": 1},
    ),
)
def test_the_schema_refuses_what_is_wrong(fault: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check({**of("scored"), **fault})
