"""The HL7 message: valid by an independent parser, complete, the same on every try."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import hl7
import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message
from hl7apy.parser import parse_message
from pydicom.dataset import Dataset

from hipscore.change import model_name
from hipscore.domain import RESEARCH_USE, EarlierHip, EarlierScore, Remark, Side, StudyIdentity
from hipscore.reporting import ReportContext, SopReference, oru
from hipscore.reporting.rejection import Why
from hipscore.reporting.retraction import build_retraction
from tests.contract.factories import CARD, CASES, CONTEXT, Case, case

SR = SopReference(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
    sop_instance_uid="2.25.11",
    series_instance_uid="2.25.12",
    study_instance_uid="2.25.13",
)
SEG = replace(SR, sop_class_uid="1.2.840.10008.5.1.4.1.1.66.4", sop_instance_uid="2.25.14")


def built(
    made: Case, context: ReportContext = CONTEXT, *references: SopReference, **header: Any
) -> bytes:
    images = [changed(image, **header) for image in made.images] if header else made.images
    return oru.build_oru(images, made.findings, CARD, context, references)


def changed(image: Dataset, **header: Any) -> Dataset:
    other = deepcopy(image)
    for keyword, value in header.items():
        setattr(other, keyword, value)
    return other


def valid(data: bytes) -> Message:
    """What hl7apy, in its strict mode, makes of the message."""
    text = data.decode("utf-8")
    assert text.endswith("\r")
    assert "\n" not in text
    message = parse_message(text, validation_level=VALIDATION_LEVEL.STRICT, find_groups=True)
    assert message.validate()
    return message


def observations(data: bytes) -> dict[str, hl7.Segment]:
    """OBX by the identifier of what was observed."""
    found = {str(each(3)(1)(1)): each for each in hl7.parse(data.decode()).segments("OBX")}
    assert len(found) == len(hl7.parse(data.decode()).segments("OBX"))
    return found


def notes(data: bytes) -> list[str]:
    message = hl7.parse(data.decode())
    return [str(each(3)) for each in message if str(each[0]) == "NTE"]


@pytest.mark.computes
@pytest.mark.parametrize("name", CASES)
def test_every_case_makes_a_valid_message(name: str) -> None:
    message = valid(built(case(name), CONTEXT, SR))
    assert message.MSH.MSH_9.value == "ORU^R01^ORU_R01"
    assert message.MSH.MSH_12.value == "2.5.1"
    assert message.MSH.MSH_18.value == "UNICODE UTF-8"


def test_the_same_arguments_give_the_same_bytes_and_another_analysis_another_control_id() -> None:
    first, again = built(case("scored")), built(case("scored"))
    other = built(case("scored"), replace(CONTEXT, job_key="another"))
    ids = [str(hl7.parse(each.decode()).segment("MSH")(10)) for each in (first, again, other)]
    assert first == again
    assert ids[0] == ids[1] != ids[2]
    assert all(0 < len(each) <= 20 for each in ids)


def test_the_numbers_are_those_of_the_findings() -> None:
    findings = case("scored").findings
    found = observations(built(case("scored"), CONTEXT, SEG, SR))
    assert float(str(found["UNET_SCORE"](5))) == pytest.approx(findings.unet_score, abs=1e-4)
    assert str(found["UNET_SCORE"](6)) == "1^no units^UCUM"
    for hip, side in zip(findings.hips, "RL", strict=True):
        for name, value in (
            ("UNET_SCORE", hip.unet_score),
            ("BME_SCORE", hip.bme_score),
            ("SYNOVITIS_SCORE", hip.synovitis_score),
            ("MEAN_RATIO", hip.mean_ratio),
            ("VOLUME_INDEX", hip.whole_volume_index),
        ):
            assert float(str(found[f"{name}-{side}"](5))) == pytest.approx(value, abs=1e-4)
        assert str(found[f"SLICES_USED-{side}"](5)) == str(len(hip.slices))
    assert {str(each(11)) for each in found.values()} == {"F"}
    assert str(found["SR_INSTANCE_UID"](5)) == SR.sop_instance_uid
    assert str(found["110180"](5)) == str(case("scored").images[0].StudyInstanceUID)


def test_a_series_without_score_says_so_and_why() -> None:
    data = built(case("not scorable"))
    found = observations(data)
    assert [str(found["UNET_SCORE"](place)) for place in (5, 11)] == ["", "X"]
    assert str(found["REASON"](5)) == "TOO_FEW_SLICES^Too few slices^99HIPSCORE"
    assert str(found["REASON"](2)) == "CWE"
    assert "4 slices show ≥ 100 mm² of femoral head" in notes(data)


def test_the_hip_that_was_not_scored_has_its_own_reason() -> None:
    found = observations(built(case("one hip of two scored")))
    assert str(found["UNET_SCORE"](11)) == str(found["UNET_SCORE-R"](11)) == "F"
    assert str(found["UNET_SCORE-L"](11)) == "X"
    assert "REASON-L" in found
    assert str(found["HIPS_SCORED"](5)) == "1"


def test_what_speaks_against_the_number_stands_beside_it() -> None:
    made = case("one hip of two scored")
    said = notes(built(made))
    assert said[0] == RESEARCH_USE
    assert all(remark.text in said for remark in made.findings.quality)
    assert made.findings.quality


def test_names_survive_in_every_script_and_nothing_in_them_is_taken_for_structure() -> None:
    name = "Müller|x^An~na&BC=山田^太郎=やまだ^たろう"
    data = built(
        case("scored"), SpecificCharacterSet="ISO_IR 192", PatientName=name, PatientID="A|1^2"
    )
    message = valid(data)
    person = hl7.parse(data.decode()).segment("PID")
    parsed = hl7.parse(data.decode())
    shown = [[parsed.unescape(str(part)) for part in each] for each in person(5)]
    assert [each[:2] for each in shown] == [
        ["Müller|x", "An~na&BC"],
        ["山田", "太郎"],
        ["やまだ", "たろう"],
    ]
    assert [each[7] for each in shown] == ["A", "I", "P"]
    assert parsed.unescape(str(person(3)(1)(1))) == "A|1^2"
    assert "山田" in message.to_er7()


def test_prefix_and_suffix_change_places() -> None:
    data = built(case("scored"), PatientName="Adams^John Robert^Quincy^Rev.^B.A. M.Div.")
    parts = hl7.parse(data.decode()).segment("PID")(5)(1)
    assert [str(each) for each in parts] == [
        "Adams",
        "John Robert",
        "Quincy",
        "B.A. M.Div.",
        "Rev.",
        "",
        "L",
        "A",
    ]


def test_a_patient_nobody_named_is_mixed_up_with_no_other() -> None:
    data = built(case("scored"), PatientName="", PatientID="", PatientSex="", PatientBirthDate="")
    valid(data)
    person = hl7.parse(data.decode()).segment("PID")
    assert str(person(3)(1)(1)) == str(case("scored").images[0].StudyInstanceUID)
    assert str(person(5)) == "^^^^^^U"
    assert str(person(8)) == "U"


def test_the_order_is_known_by_its_accession_number() -> None:
    ordered = replace(
        CONTEXT,
        identity=StudyIdentity(
            patient_id=str(case("scored").images[0].PatientID),
            accession_number="ACC-7",
            referring_physician="House^Gregory",
            order_source="worklist",
        ),
    )
    data = built(case("scored"), ordered, StudyDate="20240102", StudyTime="1314")
    valid(data)
    request = hl7.parse(data.decode()).segment("OBR")
    assert [str(request(place)) for place in (2, 18)] == ["ACC-7"] * 2
    assert str(request(7)) == "202401021314"
    assert str(request(16)) == "^House^Gregory^^^^^^^L^^^^^A"
    assert str(request(25)) == "F"


def test_every_series_has_a_number_of_its_own_which_its_corrections_keep() -> None:
    corrected = replace(CONTEXT, job_key="another", predecessor=SR)
    messages = [
        built(case("scored"), AccessionNumber="ACC-7"),
        built(case("scored"), corrected, AccessionNumber="ACC-7"),
        built(case("scored"), AccessionNumber="ACC-7", SeriesInstanceUID="2.25.31"),
        built(case("scored"), AccessionNumber=""),
    ]
    numbers = []
    for data in messages:
        valid(data)
        parsed = hl7.parse(data.decode())
        number = str(parsed.segment("OBR")(3)(1)(1))
        assert str(parsed.segment("OBR")(3)) == str(parsed.segment("ORC")(3))
        assert str(parsed.segment("OBR")(3)) == f"{number}^HIPSCORE"
        assert 0 < len(number) <= 20
        assert {str(each(4)) for each in parsed.segments("OBX")} == {number}
        numbers.append(number)
    assert numbers[0] == numbers[1] == numbers[3] != numbers[2]
    assert str(observations(messages[2])["112002"](5)) == "2.25.31"


def test_a_later_result_is_the_correction_of_the_earlier() -> None:
    found = built(case("scored"), replace(CONTEXT, predecessor=SR))
    assert str(hl7.parse(found.decode()).segment("OBR")(25)) == "C"
    assert str(observations(found)["UNET_SCORE"](11)) == "C"


def test_a_flagged_score_is_marked_as_abnormal_with_the_reason() -> None:
    flagged = built(case("scored"), replace(CONTEXT, priority_score=0.5))
    plain = built(case("scored"), replace(CONTEXT, priority_score=1e6))
    assert str(observations(flagged)["UNET_SCORE"](8)) == "A"
    assert any(each.startswith("Flagged: ") for each in notes(flagged))
    assert str(observations(plain)["UNET_SCORE"](8)) == ""


def test_the_change_since_an_earlier_score_is_told_with_what_speaks_against_it() -> None:
    earlier = EarlierScore(
        study_instance_uid="2.25.20",
        sr_instance_uid="2.25.21",
        study_date="20230401",
        unet_score=1.5,
        hips={Side.RIGHT: EarlierHip(unet_score=1.5, slices_used=5, mean_ratio=0.3)},
        model=model_name(CARD),
        source="database",
    )
    data = built(case("scored"), replace(CONTEXT, earlier=(earlier,)))
    valid(data)
    found = observations(data)
    assert str(found["EARLIER_SCORE"](5)) == "1.5000"
    assert [str(found["EARLIER_DATE"](place)) for place in (2, 5)] == ["DT", "20230401"]
    assert str(found["COMPARABLE"](5)(1)(2)) == "No"
    right = case("scored").findings.hips[0].unet_score
    assert right is not None
    assert float(str(found["SCORE_CHANGE-R"](5))) == pytest.approx(right - 1.5, abs=1e-4)


@pytest.mark.computes
@pytest.mark.parametrize("name", CASES)
def test_a_retraction_is_the_message_once_more_as_wrong(name: str) -> None:
    context = replace(CONTEXT, priority_score=0.5)
    sent = built(case(name), context, SR, PatientName="Müller^An&na", AccessionNumber="ACC-7")
    data = build_retraction(
        sent, Why.WORKLIST, replace(CONTEXT, created_at=datetime(2026, 5, 1, 9, tzinfo=UTC))
    )
    valid(data)
    before, after = hl7.parse(sent.decode()), hl7.parse(data.decode())
    assert str(after.segment("PID")) == str(before.segment("PID"))
    for place in (2, 3, 4, 7, 18):
        assert str(after.segment("OBR")(place)) == str(before.segment("OBR")(place))
    assert [str(after.segment("OBR")(place)) for place in (22, 25)] == ["20260501090000+0000", "C"]
    assert str(after.segment("MSH")(7)) == "20260501090000+0000"
    assert str(after.segment("MSH")(10)) != str(before.segment("MSH")(10))
    told = observations(data)
    assert list(told) == list(observations(sent))
    assert {(str(each(5)), str(each(8)), str(each(11))) for each in told.values()} == {
        ("", "", "W")
    }
    assert [str(each[0]) for each in after][:6] == ["MSH", "PID", "ORC", "OBR", "NTE", "NTE"]
    told_why = (
        "The result was withdrawn by an operator (Incorrect Modality Worklist Entry). "
        "It is not to be used"
    )
    assert notes(data) == [RESEARCH_USE, told_why]


def test_a_retraction_is_the_same_on_every_try() -> None:
    sent = built(case("scored"))
    first, again = (build_retraction(sent, Why.QUALITY, CONTEXT) for _ in range(2))
    assert first == again
    assert 0 < len(str(hl7.parse(first.decode()).segment("MSH")(10))) <= 20


def test_a_result_that_is_not_here_any_more_is_taken_back_by_its_number_and_codes() -> None:
    image = changed(case("scored").images[0], AccessionNumber="ACC-7")
    bare = oru.build_bare(image, tuple(Side), CONTEXT)
    data = build_retraction(bare, Why.SAFETY, CONTEXT)
    valid(bare)
    valid(data)
    sent = built(case("scored"), AccessionNumber="ACC-7")
    for name, place in (("ORC", 3), ("OBR", 2), ("OBR", 3), ("PID", 3), ("MSH", 10)):
        shown = [str(hl7.parse(each.decode()).segment(name)(place)) for each in (bare, sent)]
        assert shown[0] == shown[1]
    told = observations(data)
    assert set(observations(sent)) - set(told) == {"HIPS_SCORED"}
    assert {(str(each(5)), str(each(11))) for each in told.values()} == {("", "W")}


@pytest.mark.parametrize("data", (b"", b"no message", b"\xff", b"MSH|^~\\&|A\r"))
def test_what_is_no_message_of_ours_is_not_taken_back(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a message of a result"):
        build_retraction(data, Why.QUALITY, CONTEXT)


def test_a_remark_with_line_breaks_stays_in_its_field() -> None:
    findings = replace(
        case("scored").findings, quality=(Remark(code="x", text="one\r\ntwo|three\tfour"),)
    )
    data = oru.build_oru(case("scored").images, findings, CARD, CONTEXT)
    valid(data)
    assert "one two\\F\\three four" in notes(data)
