"""Earlier reports: what is read of them, and which of several counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from hipscore.change import model_name
from hipscore.domain import EarlierHip, EarlierScore, Side
from hipscore.header import Unreadable
from hipscore.identity import identity
from hipscore.keeping.reports import LARGEST, NotOurs, read_arrived
from hipscore.reporting import SopReference, earlier
from hipscore.reporting.earlier import EarlierReport, read_document, read_report, standing
from hipscore.reporting.result import result_json
from hipscore.reporting.source import to_bytes
from tests.contract import factories
from tests.contract.factories import CARD, CONTEXT, report

pytestmark = pytest.mark.computes

NOW = datetime(2024, 7, 2, 9, 30, tzinfo=UTC)


# --- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("comprehensive3d", (True, False))
def test_a_report_is_read_as_it_was_written(comprehensive3d: bool) -> None:
    document = report("scored", comprehensive3d=comprehensive3d)
    findings = factories.case("scored").findings
    found = read_report(document)
    assert found is not None
    assert found.unet_score == pytest.approx(findings.unet_score, abs=1e-6)
    assert found.study_instance_uid == document.StudyInstanceUID
    assert found.sr_instance_uid == document.SOPInstanceUID
    assert found.sr_class_uid == document.SOPClassUID
    assert found.sr_series_uid == document.SeriesInstanceUID
    assert found.study_date == document.StudyDate
    assert found.model == model_name(CARD)
    assert found.source == "pacs"
    assert set(found.hips) == set(Side)
    for hip in findings.hips:
        read = found.hips[hip.hip.side]
        assert read.slices_used == len(hip.slices)
        assert read.unet_score == pytest.approx(hip.unet_score, abs=1e-6)
        assert read.mean_ratio == pytest.approx(hip.mean_ratio, abs=1e-6)
        assert read.whole_volume_index == pytest.approx(hip.whole_volume_index, abs=1e-6)


def test_what_decides_whether_it_counts_is_read_too() -> None:
    predecessor = SopReference(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        sop_instance_uid="1.2.3",
        series_instance_uid="1.2",
        study_instance_uid="1",
    )
    case = factories.case("scored")
    found = read_document(case.sr(replace(CONTEXT, predecessor=predecessor)))
    assert found is not None
    assert found.predecessors == ("1.2.3",)
    assert found.series_instance_uid == case.images[0].SeriesInstanceUID
    assert found.created_at == CONTEXT.created_at.replace(microsecond=0)


def test_a_report_that_names_its_time_zone_is_of_that_moment() -> None:
    images = copy.deepcopy(factories.case("scored").images)
    for image in images:
        image.TimezoneOffsetFromUTC = "-0330"
    found = read_document(replace(factories.case("scored"), images=images).sr())
    assert found is not None
    assert found.created_at == CONTEXT.created_at.replace(microsecond=0)


def test_a_report_that_tells_of_a_change_is_read_for_its_own_score() -> None:
    then = a_score("9.9", "20230102", 99.0)
    found = read_report(factories.case("scored").sr(replace(CONTEXT, earlier=(then,))))
    assert found is not None
    assert found == read_report(report("scored"))


@pytest.mark.parametrize("name", ("one hip in view", "one hip of two scored"))
def test_a_hip_that_was_not_scored_is_absent(name: str) -> None:
    found = read_report(report(name))
    assert found is not None
    assert len(found.hips) == 1


def test_a_clean_hip_has_the_score_nought() -> None:
    found = read_report(report("clean"))
    assert found is not None
    assert found.unet_score == 0.0


def test_a_report_without_a_score_is_known_but_says_none() -> None:
    assert read_report(report("not scorable")) is None
    found = read_document(report("not scorable"))
    assert found is not None
    assert found.score is None
    assert found.study_instance_uid == report("not scorable").StudyInstanceUID


def _of_another_maker(document: Dataset) -> None:
    document.Manufacturer = "somebody"


def _without_the_scheme(document: Dataset) -> None:
    del document.CodingSchemeIdentificationSequence


def _partial(document: Dataset) -> None:
    document.CompletionFlag = "PARTIAL"


def _of_another_class(document: Dataset) -> None:
    document.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"


def _without_measurements(document: Dataset) -> None:
    del document.ContentSequence[-1]


def _of_no_day(document: Dataset) -> None:
    document.StudyDate = ""


def _with_a_score_that_is_none(document: Dataset) -> None:
    for item in document.ContentSequence[-1].ContentSequence[0].ContentSequence:
        if "MeasuredValueSequence" in item:
            item.MeasuredValueSequence[0].NumericValue = "-1"


def _without_uid(document: Dataset) -> None:
    del document.StudyInstanceUID


@pytest.mark.parametrize(
    "change",
    (
        _of_another_maker,
        _without_the_scheme,
        _partial,
        _of_another_class,
        _without_measurements,
        _of_no_day,
        _with_a_score_that_is_none,
        _without_uid,
    ),
)
def test_what_is_no_report_of_ours_is_none(change: Callable[[Dataset], None]) -> None:
    document = copy.deepcopy(report("scored"))
    assert read_document(document) is not None
    change(document)
    assert read_document(document) is None


def test_nothing_is_read_of_nothing() -> None:
    assert read_document(Dataset()) is None


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=40))
def test_a_damaged_report_is_unreadable_or_not_ours_or_read(place: int, damage: bytes) -> None:
    data = bytearray(to_bytes(report("scored")))
    place = 400 + place % (len(data) - 400)
    data[place : place + len(damage)] = damage
    said = ""
    try:
        found, _ = read_arrived(data)
    except (Unreadable, NotOurs) as error:
        said = str(error)
    else:
        assert isinstance(found, EarlierReport)
    assert "PHANTOM" not in said


def test_what_arrives_is_a_report_of_a_patient() -> None:
    document = report("scored")
    found, whose = read_arrived(to_bytes(document))
    assert found == read_document(document)
    assert whose == identity(document)


@pytest.mark.parametrize("patient_id", ("", "ANONYMOUS"))
def test_a_report_of_nobody_is_not_kept(patient_id: str) -> None:
    document = copy.deepcopy(report("scored"))
    document.PatientID = patient_id
    with pytest.raises(NotOurs, match="patient with an ID"):
        read_arrived(to_bytes(document))


def test_what_is_far_larger_than_a_report_is_not_looked_into() -> None:
    with pytest.raises(NotOurs, match="too large"):
        read_arrived(bytes(LARGEST + 1))


def test_what_was_announced_as_something_else_is_unreadable() -> None:
    with pytest.raises(Unreadable, match="differs"):
        read_arrived(to_bytes(report("scored")), ("1.2", "1.2.3"))


# --- our own results -------------------------------------------------------------------------


def a_result(name: str = "scored", **more: Any) -> dict[str, Any]:
    findings = factories.case(name).findings
    made = result_json(
        study_uid="1.2",
        series_uid="1.2.3",
        status="scored",
        findings=findings,
        card=CARD,
        created_at=NOW,
    )
    return {**made, **more}


REFERENCE = SopReference(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
    sop_instance_uid="1.2.9",
    series_instance_uid="1.2.8",
    study_instance_uid="1.2",
)


def test_a_result_says_the_same_as_its_report() -> None:
    from_database = earlier.from_result(
        a_result(), REFERENCE, study_date="20240102", study_time="120000"
    )
    from_pacs = read_report(report("scored"))
    assert from_database is not None
    assert from_database.score is not None
    assert from_pacs is not None
    assert from_database.created_at == NOW
    assert from_database.score.source == "database"
    assert from_database.score.model == from_pacs.model
    assert from_database.score.unet_score == pytest.approx(from_pacs.unet_score, abs=1e-6)
    assert set(from_database.score.hips) == set(from_pacs.hips)
    for side, hip in from_database.score.hips.items():
        assert hip.slices_used == from_pacs.hips[side].slices_used


def test_a_result_that_supersedes_another_says_so() -> None:
    found = earlier.from_result(
        a_result(supersedes="1.2.7"), REFERENCE, study_date="20240102", study_time=""
    )
    assert found is not None
    assert found.predecessors == ("1.2.7",)


@pytest.mark.parametrize("result", ({}, {"unet_score": 3.2}, a_result(created_at=None)))
def test_a_result_that_says_too_little_is_none(result: dict[str, Any]) -> None:
    assert earlier.from_result(result, REFERENCE, study_date="20240102", study_time="") is None


# --- which of several ------------------------------------------------------------------------


def a_score(study: str, date: str, score: float = 3.0) -> EarlierScore:
    return EarlierScore(
        study_instance_uid=study,
        sr_instance_uid=f"{study}.9",
        study_date=date,
        unet_score=score,
        hips={Side.LEFT: EarlierHip(unet_score=score, slices_used=9)},
        model="hips 1.0",
        source="pacs",
    )


def a_report(
    study: str,
    date: str,
    time: str = "",
    *,
    number: int = 1,
    hours: float = 0,
    score: float | None = 3.0,
    predecessors: tuple[str, ...] = (),
    series: str = "7",
) -> EarlierReport:
    uid = f"{study}.{number}"
    return EarlierReport(
        sop_instance_uid=uid,
        study_instance_uid=study,
        series_instance_uid=series,
        study_date=date,
        study_time=time,
        created_at=NOW + timedelta(hours=hours),
        predecessors=predecessors,
        score=None if score is None else replace(a_score(study, date, score), sr_instance_uid=uid),
    )


def found(*reports: EarlierReport, before: tuple[str, str] = ("20240702", "120000")) -> list[str]:
    return [each.sr_instance_uid for each in standing(reports, before=before, other_than="1.0")]


def test_the_newest_study_comes_first() -> None:
    reports = (
        a_report("1.1", "20220101"),
        a_report("1.2", "20240101"),
        a_report("1.3", "20230101"),
    )
    assert found(*reports) == ["1.2.1", "1.3.1", "1.1.1"]


def test_later_studies_and_the_study_itself_are_left_out() -> None:
    reports = (a_report("1.1", "20240703"), a_report("1.0", "20240101"))
    assert found(*reports) == []


def test_of_the_same_day_the_time_decides_if_both_are_known() -> None:
    reports = (
        a_report("1.1", "20240702", "115959.5"),
        a_report("1.2", "20240702", "12"),
        a_report("1.3", "20240702", "1201"),
        a_report("1.4", "20240702"),
    )
    assert found(*reports) == ["1.1.1"]
    assert found(*reports, before=("20240702", "")) == []


@pytest.mark.parametrize("day", ("", "20241301", "00000000"))
def test_without_a_day_there_is_nothing_earlier(day: str) -> None:
    assert found(a_report("1.1", "20240101"), before=(day, "")) == []
    assert found(a_report("1.1", day)) == []


def test_a_report_does_not_win_over_the_one_that_replaced_it() -> None:
    first = a_report("1.1", "20240101", number=1, hours=2)
    second = a_report("1.1", "20240101", number=2, hours=1, predecessors=("1.1.1",))
    assert found(first, second) == ["1.1.2"]
    assert found(second, first) == ["1.1.2"]


def test_of_one_series_the_newest_speaks_and_of_two_series_both() -> None:
    reports = (
        a_report("1.1", "20240101", number=1, hours=1),
        a_report("1.1", "20240101", number=2, hours=2),
        a_report("1.1", "20240101", number=3, hours=0, series="8"),
    )
    assert found(*reports) == ["1.1.2", "1.1.3"]


def test_a_series_whose_newest_report_has_no_score_has_none() -> None:
    first = a_report("1.1", "20240101", number=1)
    second = a_report("1.1", "20240101", number=2, hours=1, score=None)
    assert found(first, second) == []


def test_the_same_report_twice_counts_once() -> None:
    assert found(a_report("1.1", "20240101"), a_report("1.1", "20240101")) == ["1.1.1"]
