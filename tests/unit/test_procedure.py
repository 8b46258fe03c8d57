"""Unified Procedure Steps: every cell of the state table, what an item needs, and searching."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from hipscore.domain import StudyIdentity
from hipscore.procedure import analysis, matching, reports, rules
from hipscore.procedure.dataset import (
    Attributes,
    Malformed,
    code,
    data_set,
    person,
    read,
    stamp,
    tag,
    value,
    values,
)
from hipscore.procedure.states import CHANGES, TABLE, Ruling, State, Status, Wish, rule
from hipscore.reporting import codes

NOW = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)
IDENTITY = StudyIdentity(
    patient_id="P-1", patient_name="Doe^Jane", birth_date="20100203", accession_number="A-7"
)

SCHEDULED, IN_PROGRESS = State.SCHEDULED, State.IN_PROGRESS
COMPLETED, CANCELED = State.COMPLETED, State.CANCELED


def opened(uid: str = "2.25.1") -> Attributes:
    """The item of an analysis."""
    return analysis.opened(
        uid,
        study_uid="1.2",
        series_uid="1.2.3",
        images=[analysis.Image("1.2.840.10008.5.1.4.1.1.4", "1.2.3.1")],
        identity=IDENTITY,
        now=NOW,
    )


# --- states: PS3.4 table CC.1.1-2, columns SCHEDULED, IN PROGRESS, COMPLETED, CANCELED ---

COLUMNS = (SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED)
STANDARD: dict[Wish, tuple[int, int, int, int]] = {
    Wish.CLAIM: (0x0000, 0xC302, 0xC300, 0xC300),
    Wish.RESCHEDULE: (0xC303, 0xC303, 0xC303, 0xC303),
    Wish.COMPLETE: (0xC310, 0x0000, 0xB306, 0xC300),
    Wish.REQUEST_CANCEL: (0x0000, 0x0000, 0xC311, 0xB304),
    Wish.CANCEL: (0xC310, 0x0000, 0xC300, 0xB304),
    Wish.UPDATE: (0x0000, 0x0000, 0xC300, 0xC300),
}


@pytest.mark.parametrize("wish", tuple(Wish))
@pytest.mark.parametrize("state", COLUMNS)
def test_every_cell_says_what_the_standard_says(wish: Wish, state: State) -> None:
    ruling = rule(state, wish, held="1.2", given="1.2")
    assert ruling.status == STANDARD[wish][COLUMNS.index(state)]


@pytest.mark.parametrize("state", COLUMNS)
def test_a_wrong_transaction_uid_opens_nothing(state: State) -> None:
    wrong = Ruling(Status.WRONG_TRANSACTION)
    for wish in (Wish.CLAIM, Wish.COMPLETE, Wish.CANCEL):
        ruling = rule(state, wish, held="1.2", given="9.9")
        assert (ruling == wrong) == (state is not SCHEDULED)
    assert (rule(state, Wish.UPDATE, held="1.2", given="9.9") == wrong) == (state is IN_PROGRESS)
    assert rule(state, Wish.UPDATE, held=None, given=None) != wrong or state is IN_PROGRESS


def test_the_table_is_complete_and_leads_where_it_should() -> None:
    assert all(set(row) == set(State) for row in TABLE.values())
    assert set(TABLE) == set(Wish)
    assert set(CHANGES) == set(State)
    assert TABLE[Wish.REQUEST_CANCEL][SCHEDULED].through == (IN_PROGRESS, CANCELED)
    assert TABLE[Wish.CLAIM][SCHEDULED].through == (IN_PROGRESS,)
    assert TABLE[Wish.COMPLETE][IN_PROGRESS].through == (COMPLETED,)
    assert TABLE[Wish.CANCEL][IN_PROGRESS].through == (CANCELED,)
    for row in TABLE.values():
        for ruling in row.values():
            assert not ruling.through or ruling.status is Status.SUCCESS


# --- data sets ---------------------------------------------------------------------------


def test_what_is_made_is_what_pydicom_makes() -> None:
    made = data_set(
        PatientName="Müller^Änne=山田^太郎=やまだ",
        PatientID="P",
        PatientBirthDate="",
        ScheduledWorkitemCodeSequence=[analysis.HIP_SCORE],
    )
    theirs = Dataset()
    theirs.PatientName = "Müller^Änne=山田^太郎=やまだ"
    theirs.PatientID = "P"
    theirs.PatientBirthDate = ""
    item = Dataset()
    item.CodeValue = "HIP_SCORE"
    item.CodingSchemeDesignator = "99HIPSCORE"
    item.CodeMeaning = "Hip inflammation score"
    theirs.ScheduledWorkitemCodeSequence = [item]
    assert made == json.loads(theirs.to_json())


def test_times_say_their_zone_and_names_their_groups() -> None:
    assert stamp(NOW) == "20260314093000.000000+0000"
    assert person("A^B==C") == {"Alphabetic": "A^B", "Phonetic": "C"}


def test_an_array_of_one_is_a_data_set_and_tags_come_in_capitals() -> None:
    body = b'[{"0040a370": {"vr": "SQ", "Value": [{"00080050": {"vr": "SH", "Value": ["A"]}}]}}]'
    found = read(body)
    assert list(found) == ["0040A370"]
    assert value(values(found, "ReferencedRequestSequence")[0], "AccessionNumber") == "A"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["vr", "Value", "00741000", "00404021", "00100010", "Alphabetic", "x"]),
            inner | st.sampled_from(["CS", "SQ", "PN", "SCHEDULED"]),
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_is_sent_is_read_or_refused(body: object) -> None:
    try:
        found = read(json.dumps(body).encode())
    except Malformed:
        return
    json.dumps(found, allow_nan=False).encode()
    assert all(len(name) == 8 for name in found)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_json_are_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        read(b"\xff" + body)


# --- rules -------------------------------------------------------------------------------


def test_the_item_of_an_analysis_has_all_that_a_created_one_has() -> None:
    item = opened()
    assert rules.unmet(item, CANCELED) == []
    assert rules.unmet(item, COMPLETED) == [rules.PERFORMED]
    done = analysis.performed(
        analysis.begun(item, now=NOW),
        study_uid="1.2",
        outputs=[analysis.Output("2.25.5", "1.2.840.10008.5.1.4.1.1.66.4", "2.25.6")],
        retrieve_from=["PACS"],
        remark="scored",
        urgent=True,
        now=NOW,
    )
    assert rules.unmet(done, COMPLETED) == []
    assert value(done, "ScheduledProcedureStepPriority") == "HIGH"
    Dataset.from_json(done)


def test_an_item_without_outputs_says_where_nothing_is() -> None:
    done = analysis.performed(
        opened(), study_uid="1.2", outputs=[], retrieve_from=[], remark="", urgent=False, now=NOW
    )
    assert rules.unmet(done, COMPLETED) == []
    assert value(done, "ScheduledProcedureStepPriority") == "MEDIUM"


def test_ours_is_known_by_its_code_in_its_scheme() -> None:
    assert analysis.is_ours(opened())
    other = data_set(ScheduledWorkitemCodeSequence=[code("HIP_SCORE", "99OTHER", "x")])
    assert not analysis.is_ours(other)
    assert not analysis.is_ours({})
    assert codes.SCHEME == analysis.SCHEME  # two modules that do not import each other


def test_the_order_is_added_once_it_is_known() -> None:
    item = {**opened(), **data_set(ReferencedRequestSequence=[])}
    later = analysis.ordered(item, IDENTITY, "1.2")
    (request,) = values(later, "ReferencedRequestSequence")
    assert value(request, "AccessionNumber") == "A-7"
    assert analysis.ordered(later, StudyIdentity(), "1.2") == later


def test_a_canceled_item_keeps_the_reason_it_was_given() -> None:
    given_why = data_set(ReasonForCancellation="twice")
    item = {**opened(), **data_set(**{rules.PROGRESS: [given_why]})}
    why = analysis.why_failed("images_purged", "the images were purged")
    (progress,) = values(rules.canceled(item, why=why, now=NOW), rules.PROGRESS)
    assert value(progress, "ReasonForCancellation") == "twice"
    (reason,) = values(progress, "ProcedureStepDiscontinuationReasonCodeSequence")
    assert value(reason, "CodeValue") == "110523"


def test_the_state_is_reported_with_why_it_ended() -> None:
    why = analysis.why_failed(None, "no sign of life")
    report = reports.state(rules.canceled(opened(), why=why, now=NOW))
    assert value(report.attributes, "ProcedureStepState") == "CANCELED"
    assert value(report.attributes, "ReasonForCancellation") == "no sign of life"


# --- matching ----------------------------------------------------------------------------


def hits(wanted: str, found: str, keyword: str = "PatientID") -> bool:
    """Whether a value is found by a key."""
    return matching.matches(data_set(**{keyword: found}), [matching.key(keyword, wanted)])


@pytest.mark.parametrize(
    ("wanted", "found", "hit"),
    (
        ("", "anything", True),
        ("ABC", "ABC", True),
        ("ABC", "ABCD", False),
        ("abc", "ABC", False),
        ("A*C", "ABBBC", True),
        ("A*C", "AC", True),
        ("A*B*C", "AXBYC", True),
        ("A*B*C", "AXCYB", False),
        ("A?C", "ABC", True),
        ("A?C", "AC", False),
        ("*", "", False),
        ("*B", "AB", True),
        ("AB*BA", "ABA", False),
        ("a.c", "abc", False),
        ("?*?", "a", False),
    ),
)
def test_wild_cards(wanted: str, found: str, hit: bool) -> None:
    assert hits(wanted, found) is hit


@given(st.text(alphabet="ab*?", max_size=8), st.text(alphabet="ab", min_size=1, max_size=10))
def test_wild_cards_are_those_of_the_shell(wanted: str, found: str) -> None:
    import fnmatch

    assert hits(wanted, found) is (not wanted or fnmatch.fnmatchcase(found, wanted))


def test_many_asterisks_cost_little() -> None:
    assert not hits("*a" * 300 + "b", "a" * 64)


@pytest.mark.parametrize(
    ("keyword", "wanted", "found", "hit"),
    (
        ("StudyDate", "20260314", "20260314", True),
        ("StudyDate", "20260301-20260331", "20260314", True),
        ("StudyDate", "20260315-", "20260314", False),
        ("StudyDate", "-20260314", "20260314", True),
        ("StudyTime", "0900-1000", "093000", True),
        ("StudyTime", "0900-0929", "093000", False),
        ("ScheduledProcedureStepStartDateTime", "20260314", "20260314093000.5", True),
        ("ScheduledProcedureStepStartDateTime", "2026", "20260314093000", True),
        ("ScheduledProcedureStepStartDateTime", "202603141030+0100", "202603140930", True),
        ("ScheduledProcedureStepStartDateTime", "202603140930-0500", "202603141430", True),
        ("ScheduledProcedureStepStartDateTime", "20260313-20260314", "20260314235959", True),
        ("ScheduledProcedureStepStartDateTime", "20260313-20260314", "20260315", False),
        ("ScheduledProcedureStepStartDateTime", "20251231-", "20260101", True),
        ("StudyInstanceUID", "1.2,1.3", "1.3", True),
        ("StudyInstanceUID", "1.2\\1.3", "1.4", False),
        ("StudyInstanceUID", "1.*", "1.3", False),
        ("InstanceNumber", "7", "07", True),
    ),
)
def test_dates_times_uids_and_numbers(keyword: str, wanted: str, found: str, hit: bool) -> None:
    assert hits(wanted, found, keyword) is hit


@pytest.mark.parametrize("wanted", ("soon", "20261301", "-", "2026-2027-2028", "99991231-x"))
def test_what_is_no_time_is_refused(wanted: str) -> None:
    with pytest.raises(Malformed):
        matching.key("ScheduledProcedureStepStartDateTime", wanted)


@given(st.text(max_size=30))
def test_any_text_can_be_asked_for_or_is_refused(wanted: str) -> None:
    for keyword in ("PatientName", "StudyDate", "ScheduledProcedureStepStartDateTime", "StudyTime"):
        try:
            key = matching.key(keyword, wanted)
        except Malformed:
            continue
        matching.matches(opened(), [key])


@given(st.text(alphabet='aB ^*?-"é\\\\', max_size=8), st.text(alphabet='aB ^-"é', max_size=10))
def test_what_narrows_a_search_is_in_everything_that_matches(wanted: str, found: str) -> None:
    for keyword in ("PatientID", "PatientName"):
        item, key = data_set(**{keyword: found}), matching.key(keyword, wanted)
        if wanted and matching.matches(item, [key]):
            assert matching.literal(key).lower() in json.dumps(item).lower()


def test_a_path_leads_into_the_items_of_a_sequence() -> None:
    item = opened()
    for name in ("InputInformationSequence.SeriesInstanceUID", "00404021.0020000E"):
        assert matching.matches(item, [matching.key(name, "1.2.3")])
        assert not matching.matches(item, [matching.key(name, "1.2.4")])
    with pytest.raises(Malformed):
        matching.key("InputInformationSequence", "1.2.3")
    with pytest.raises(Malformed):
        matching.path_of(".".join(["00404021"] * 9))


def test_names_are_matched_without_regard_to_case_in_any_group() -> None:
    item = data_set(PatientName="Yamada^Tarou=山田^太郎")
    for wanted in ("yamada*", "山田*", "YAMADA^TAROU"):
        assert matching.matches(item, [matching.key("PatientName", wanted)])


def test_a_search_shows_what_it_has_to() -> None:
    item = opened()
    shown = matching.shown(item, [(tag("CommentsOnTheScheduledProcedureStep"),)])
    assert tag("CommentsOnTheScheduledProcedureStep") in shown
    assert tag("ScheduledProcessingParametersSequence") not in shown
    assert matching.shown(item, None) == item
