"""The change since an earlier score: what is compared, what is not, and what is flagged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydicom.uid import Comprehensive3DSRStorage

from hipscore.change import ChangeCode, change, flag, model_name
from hipscore.domain import EarlierHip, EarlierScore, Findings, Side, StudyIdentity
from hipscore.reporting import ReportContext, assessed
from hipscore.reporting.result import result_json
from hipscore.reporting.sr import to_bytes
from tests.contract import test_result
from tests.contract.factories import (
    CARD,
    CONTEXT,
    case,
    coded,
    comments,
    content,
    dciodvfy,
    dsrdump,
    groups,
    number,
)

STUDY, SERIES, REPORT = "1.2.3.100", "1.2.3.100.7", "1.2.3.100.7.1"


def earlier(name: str = "scored", *, less: float = 1.0, **more: Any) -> EarlierScore:
    """The same hips a year before, each with ``less`` in its score, and as many slices."""
    scored = [hip for hip in case(name).findings.hips if hip.scored]
    hips = {
        hip.hip.side: EarlierHip(
            unet_score=(hip.unet_score or 0) - less,
            slices_used=len(hip.slices),
            mean_ratio=(hip.mean_ratio or 0) - less / len(hip.slices),
            whole_volume_index=(hip.whole_volume_index or 0) - 0.05,
        )
        for hip in scored
    }
    given: dict[str, Any] = {
        "study_instance_uid": STUDY,
        "sr_instance_uid": REPORT,
        "study_date": "20230102",
        "unet_score": sum(hip.unet_score for hip in hips.values()),
        "hips": hips,
        "model": model_name(CARD),
        "source": "database",
        "sr_class_uid": Comprehensive3DSRStorage,
        "sr_series_uid": SERIES,
    }
    return EarlierScore(**{**given, **more})


def findings(name: str = "scored") -> Findings:
    return case(name).findings


def with_hip(given: EarlierScore, side: Side, **more: Any) -> EarlierScore:
    hips = {**given.hips, side: dataclasses.replace(given.hips[side], **more)}
    return dataclasses.replace(given, hips=hips)


def since(given: EarlierScore, **more: Any) -> ReportContext:
    return dataclasses.replace(CONTEXT, earlier=(given,), **more)


# --- what is compared -------------------------------------------------------------------
def test_the_same_hips_over_the_same_slices_by_the_same_model_compare() -> None:
    found = change(findings(), earlier(), CARD)
    assert found is not None
    assert found.comparable
    assert found.remarks == ()
    assert found.unet_score == pytest.approx(2.0)
    assert [hip.side for hip in found.hips] == [Side.RIGHT, Side.LEFT]
    for hip, now in zip(found.hips, findings().hips, strict=True):
        assert hip.unet_score == pytest.approx(1.0)
        assert hip.mean_ratio == pytest.approx(1.0 / len(now.slices))
        assert hip.whole_volume_index == pytest.approx(0.05)


def test_another_number_of_slices_of_one_hip_is_told_by_hip() -> None:
    count = len(findings().hips[1].slices)
    found = change(findings(), with_hip(earlier(), Side.LEFT, slices_used=count - 1), CARD)
    assert found is not None
    assert not found.comparable
    [remark] = found.remarks
    assert remark.code == ChangeCode.SLICE_COUNTS
    assert remark.text.startswith(f"left hip: {count - 1} slices then, {count} now")
    assert found.unet_score == pytest.approx(2.0)


@pytest.mark.parametrize("model", (f"{CARD.id} 1.2.2", "other 1.2.3", ""))
def test_another_model_or_version_does_not_compare(model: str) -> None:
    found = change(findings(), earlier(model=model), CARD)
    assert found is not None
    assert [remark.code for remark in found.remarks] == [ChangeCode.OTHER_MODEL]
    assert not found.comparable


def test_totals_over_other_hips_have_no_difference_but_the_hip_of_both_times_has() -> None:
    alone = earlier("one hip of two scored")
    found = change(findings(), alone, CARD)
    assert found is not None
    assert found.unet_score is None
    assert [hip.side for hip in found.hips] == [Side.RIGHT]
    assert found.remarks[0].code == ChangeCode.HIPS
    assert "right hip alone, this one of both hips" in found.remarks[0].text


def test_without_a_score_there_is_no_change() -> None:
    assert change(findings("not scorable"), earlier(), CARD) is None


def test_the_newest_of_several_earlier_scores_is_taken() -> None:
    old = earlier(study_date="20200101", sr_instance_uid="1.2.3.99")
    context = dataclasses.replace(CONTEXT, earlier=(earlier(), old))
    found = assessed(findings(), CARD, context).change
    assert found is not None
    assert found.earlier.sr_instance_uid == REPORT


# --- what is flagged --------------------------------------------------------------------
def test_a_score_from_the_limit_on_is_flagged_and_one_below_is_not() -> None:
    score = findings().unet_score
    assert score is not None
    flagged = flag(findings(), None, score, None)
    assert flagged.flag
    assert flagged.reason == f"UNet-score {score:.2f} is {score:g} or more"
    below = flag(findings(), None, score + 0.01, None)
    assert (below.flag, below.reason) == (False, None)


def test_without_limits_nothing_is_flagged() -> None:
    found = change(findings(), earlier(), CARD)
    assert not flag(findings(), found, None, None).flag


@pytest.mark.parametrize(("rise", "flagged"), ((1.99, True), (2.01, False)))
def test_a_rise_from_the_limit_on_is_flagged(rise: float, flagged: bool) -> None:
    found = change(findings(), earlier(), CARD)
    priority = flag(findings(), found, None, rise)
    assert priority.flag is flagged
    assert priority.reason is None or "rose by 2.00 since 2023-01-02" in priority.reason


def test_a_rise_by_another_model_is_none() -> None:
    assert not flag(findings(), change(findings(), earlier(model="x 1"), CARD), None, 0.5).flag


def test_a_rise_by_more_slices_alone_is_none_and_one_of_the_ratio_is() -> None:
    fewer = earlier()
    for hip in findings().hips:
        fewer = with_hip(fewer, hip.hip.side, slices_used=3, mean_ratio=(hip.mean_ratio or 0) + 1)
    assert not flag(findings(), change(findings(), fewer, CARD), None, 0.5).flag
    risen = with_hip(fewer, Side.LEFT, mean_ratio=0.0)
    assert flag(findings(), change(findings(), risen, CARD), None, 0.5).flag


def test_a_rise_of_the_one_hip_scored_both_times_counts() -> None:
    found = change(findings(), earlier("one hip of two scored"), CARD)
    assert flag(findings(), found, None, 0.99).flag
    assert not flag(findings(), found, None, 1.01).flag


# --- the result document ----------------------------------------------------------------
def document(context: ReportContext, name: str = "scored") -> dict[str, Any]:
    return result_json(
        study_uid="1.2.3",
        series_uid="1.2.3.4",
        status="scored" if findings(name).scored else "not_scorable",
        findings=findings(name),
        card=CARD,
        created_at=CONTEXT.created_at,
        assessment=assessed(findings(name), CARD, context),
    )


def test_the_result_tells_the_change_and_the_flag() -> None:
    found = document(since(earlier(), priority_score=0.1))
    test_result.check(found)
    assert found["change"]["sr_instance_uid"] == REPORT
    assert found["change"]["study_date"] == "20230102"
    assert found["change"]["unet_score"] == earlier().unet_score
    assert found["change"]["difference"] == pytest.approx(2.0)
    assert found["change"]["hips"][0]["side"] == "right"
    assert found["change"]["comparable"] is True
    assert found["priority"]["flag"] is True


@pytest.mark.parametrize(
    "given",
    (
        earlier(model="x 1", study_date=""),
        earlier("one hip of two scored"),
        earlier(hips={}, unet_score=0.0),
    ),
    ids=["another model", "one hip", "no hip"],
)
def test_what_does_not_compare_follows_the_schema_and_says_why(given: EarlierScore) -> None:
    found = document(since(given))
    test_result.check(found)
    assert found["change"]["comparable"] is False
    assert found["change"]["remarks"]


def test_without_an_earlier_score_there_is_no_change() -> None:
    found = document(CONTEXT)
    test_result.check(found)
    assert found["change"] is None
    assert found["priority"] == {"flag": False, "reason": None}


def test_the_schema_refuses_a_doubtful_change_without_a_remark() -> None:
    found = document(since(earlier()))
    found["change"]["comparable"] = False
    with pytest.raises(jsonschema.ValidationError):
        test_result.check(found)


# --- the report -------------------------------------------------------------------------
@pytest.mark.computes
@pytest.mark.parametrize("comprehensive3d", (True, False))
def test_the_report_measures_the_change_and_names_the_earlier_report(
    comprehensive3d: bool, tmp_path: Path
) -> None:
    context = since(earlier(model="x 1"), priority_score=0.1)
    built = case("scored").sr(context, comprehensive3d=comprehensive3d)
    found = groups(built)
    patient = found["Patient"]
    meaning = "Change of the UNet-score since the earlier study"
    assert number(patient, meaning)[0] == pytest.approx(2.0, abs=1e-6)
    then = number(patient, "UNet-score of the earlier study")[0]
    assert then == pytest.approx(earlier().unet_score, abs=1e-6)
    assert number(found["Left hip"], meaning)[0] == pytest.approx(1.0, abs=1e-6)
    ratio, unit = number(found["Right hip"], "Change of the mean ratio per slice")
    assert (ratio > 0, unit) == (True, "{ratio}")
    assert coded(patient, "Comparable with the earlier study") == ["373067005"]
    assert coded(patient, "Remark on the change") == ["OTHER_MODEL"]
    assert coded(patient, "Reading priority by the limits of this site") == ["FLAGGED"]
    assert any(text.startswith("Flagged: UNet-score") for text in comments(patient))
    assert str(content(patient, "Study Date")[0].Date) == "20230102"
    [prior] = content(patient, "Prior report for current patient")
    assert prior.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == REPORT
    [other] = built.PertinentOtherEvidenceSequence
    assert other.StudyInstanceUID == STUDY
    [series] = other.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == SERIES
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == REPORT
    assert dciodvfy(to_bytes(built), tmp_path).errors == []
    assert "(OTHER_MODEL,99HIPSCORE" in dsrdump(to_bytes(built), tmp_path)


@pytest.mark.computes
def test_an_earlier_report_whose_series_is_unknown_is_named_in_words(tmp_path: Path) -> None:
    built = case("scored").sr(since(earlier(sr_series_uid="")))
    [prior] = content(built, "Prior report for current patient")
    assert prior.TextValue == REPORT
    assert "PertinentOtherEvidenceSequence" not in built
    assert dciodvfy(to_bytes(built), tmp_path).errors == []


def test_without_limits_the_report_says_nothing_of_priority() -> None:
    built = case("scored").sr(since(earlier()))
    assert content(built, "Reading priority by the limits of this site") == []


@pytest.mark.computes
def test_two_reports_of_one_series_look_different() -> None:
    from hipscore.reporting import SopReference

    first = case("scored").sr()
    reference = SopReference(
        sop_class_uid=str(first.SOPClassUID),
        sop_instance_uid=str(first.SOPInstanceUID),
        series_instance_uid=str(first.SeriesInstanceUID),
        study_instance_uid=str(first.StudyInstanceUID),
    )
    second = case("scored").sr(dataclasses.replace(CONTEXT, job_key="again", predecessor=reference))
    assert first.SeriesDescription == "hipscore report (research) series 3 2024-01-02 13:30:15"
    assert second.SeriesDescription == f"{first.SeriesDescription} update"
    assert len(second.SeriesDescription) <= 64


# --- the order --------------------------------------------------------------------------
ORDER = StudyIdentity(
    accession_number="A-99",
    requested_procedure_id="RP-9",
    requested_procedure_description="MR hips",
    referring_physician="Иванова^Ольга",
    order_source="worklist",
)


@pytest.mark.computes
def test_what_the_images_lack_of_the_order_is_filled_in(tmp_path: Path) -> None:
    context = dataclasses.replace(CONTEXT, identity=ORDER)
    for built in (case("scored").sr(context), case("scored").seg(context)):
        assert built is not None
        assert built.AccessionNumber == "A-99"
        assert built.ReferringPhysicianName == "Иванова^Ольга"
        assert built.SpecificCharacterSet == "ISO_IR 192"
        verdict = dciodvfy(to_bytes(built), tmp_path)
        assert verdict.errors == []
    request = case("scored").sr(context).ReferencedRequestSequence[0]
    assert request.RequestedProcedureID == "RP-9"
    assert request.RequestedProcedureDescription == "MR hips"
    assert request.AccessionNumber == "A-99"


def test_what_the_images_say_of_the_order_stays() -> None:
    import copy

    images = [copy.deepcopy(image) for image in case("scored").images]
    for image in images:
        image.AccessionNumber = "OWN"
        image.ReferringPhysicianName = "Own^Doctor"
    source = dataclasses.replace(case("scored"), images=tuple(images))
    built = source.sr(dataclasses.replace(CONTEXT, identity=ORDER))
    assert built.AccessionNumber == "OWN"
    assert built.ReferringPhysicianName == "Own^Doctor"
