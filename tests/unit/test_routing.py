"""Which series are scored, and which results go where."""

from __future__ import annotations

import functools
import ipaddress
import json
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from hipscore.anatomy import Region, judge
from hipscore.cli.rules import rules as command
from hipscore.conditions import Attribute, Came, Derived, From, Not, Orientation
from hipscore.domain import ArtifactKind, ReceivedInstance
from hipscore.keeping.patterns import compiled
from hipscore.keeping.rules import RulesError, destinations, load_rules, peers
from hipscore.phantom import synthesise
from hipscore.phantom.dicom import to_datasets
from hipscore.routing import (
    EXPLAINED,
    NO_RULE,
    ORDERED,
    TRIAL_AET,
    Action,
    Decision,
    Rule,
    Rules,
    built,
    decide,
    receiver,
    travels,
)
from hipscore.settings import Settings

CAME = Came(calling_aet="MR1", called_aet="HIPSCORE", peer="10.0.0.7")
NOTHING = Rules(artifacts={})
PACS, ARCHIVE, RIS = (
    "PACS@10.0.0.5:104",
    "https://archive.example/dicom-web",
    "mllp://10.0.0.9:2575",
)
SENT = {ArtifactKind.SEG, ArtifactKind.SR}


@functools.cache
def _images(**how: Any) -> tuple[Dataset, ...]:
    more = {name: how.pop(name) for name in ("fat_suppressed", "enhanced") if name in how}
    small: dict[str, Any] = {"rows": 64, "slices": 5, "slice_mm": 6.0, "supersampling": 1}
    return tuple(to_datasets(synthesise(seed=1, **small, **how), **more))


def images(**how: Any) -> list[Dataset]:
    """A small series that may be changed."""
    return [deepcopy(each) for each in _images(**how)]


def received(image: Dataset) -> ReceivedInstance:
    kinds = image.ImageType
    return ReceivedInstance(
        study_instance_uid=image.StudyInstanceUID,
        series_instance_uid=image.SeriesInstanceUID,
        sop_class_uid=image.SOPClassUID,
        sop_instance_uid=image.SOPInstanceUID,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        sha256="a" * 64,
        size=1,
        image_type=tuple(kinds) if isinstance(kinds, MultiValue) else (kinds,),
    )


def decided(series: Sequence[Dataset], rules: Rules = NOTHING, came: Came = CAME) -> Decision:
    return decide(rules, series[0], [received(each) for each in series], came)


def labelled(**attributes: Any) -> list[Dataset]:
    """A coronal STIR series that says this about itself, and nothing else."""
    series = images()
    for image in series:
        for keyword in ("BodyPartExamined", "StudyDescription", "ProtocolName"):
            delattr(image, keyword)
        image.SeriesDescription = "T2 STIR COR"
        for keyword, value in attributes.items():
            setattr(image, keyword, value)
    return series


def one(**tests: Any) -> Rules:
    """A rule about one attribute."""
    path = tuple(tests.pop("attribute").split("."))
    return Rules(
        artifacts={}, rules=(Rule(name="one", conditions=(Attribute(path=path, **tests),)),)
    )


# --- the rules without a file --------------------------------------------------------------


def test_a_coronal_fat_suppressed_series_of_the_hips_is_scored() -> None:
    decision = decided(images())
    assert (decision.matched, decision.rule) == (True, "hip-fat-suppressed")


@pytest.mark.computes
def test_a_multi_frame_series_is_judged_by_its_functional_groups() -> None:
    assert decided(images(enhanced=True)).rule == "hip-fat-suppressed"
    for how in ({"fat_suppressed": False}, {"plane": "axial"}, {"anatomy": "brain"}):
        assert decided(images(enhanced=True, **how)).rule == NO_RULE


@pytest.mark.parametrize(
    ("how", "failed"),
    (
        ({"fat_suppressed": False}, "fat suppressed"),
        ({"plane": "axial"}, "coronal slices"),
        ({"anatomy": "brain"}, "hip or pelvis, or no part of the body named"),
    ),
)
def test_what_lacks_one_condition_is_ignored_and_told_which(
    how: dict[str, Any], failed: str
) -> None:
    decision = decided(images(**how))
    assert (decision.matched, decision.rule, decision.nearness) == (False, NO_RULE, 2)
    assert decision.explanation[-1] == (
        f"rule hip-fat-suppressed (score): not met: {failed} (2 of 3 hold)"
    )


def test_scouts_are_ignored_whatever_the_rules_say() -> None:
    series = images()
    for image in series:
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    everything = Rules(artifacts={}, rules=(Rule(name="everything"),))
    assert decided(series, everything).rule == "localizer"
    series[0].ImageType = ["ORIGINAL", "PRIMARY", "M"]
    assert decided(series, everything).rule == "everything"


@pytest.mark.parametrize(
    "kind",
    (
        ("DERIVED", "SECONDARY", "MPR"),
        ("DERIVED", "PRIMARY", "MIP"),
        ("DERIVED", "PRIMARY", "PROJECTION IMAGE"),
        ("DERIVED", "SECONDARY", "OTHER", "SUBTRACTION"),
    ),
)
def test_computed_images_are_ignored(kind: tuple[str, ...]) -> None:
    series = images()
    for image in series:
        image.ImageType = list(kind)
    assert (decided(series).matched, decided(series).rule) == (False, "derived")


def test_derived_alone_says_nothing_water_images_and_filtered_ones_are_derived_too() -> None:
    series = images()
    for image in series:
        image.ImageType = ["DERIVED", "SECONDARY", "DIXON", "WATER"]
    assert decided(series).matched


@pytest.mark.parametrize(
    "attributes",
    (
        {},
        {"BodyPartExamined": "HIP"},
        {"BodyPartExamined": "PELVIS", "StudyDescription": "MR Knee"},
        {"SeriesDescription": "STIR cor Hüfte bds"},
        {"StudyDescription": "MR Becken"},
        {"StudyDescription": "IRM des hanches"},
        {"StudyDescription": "IS-Gelenke"},
        {"BodyPartExamined": "LSPINE", "SeriesDescription": "STIR COR ISG"},
        {"SeriesDescription": "stir cor whole body"},
        {"BodyPartExamined": "EXTREMITY"},
        {"SeriesDescription": "STIR spin echo cor"},
    ),
)
def test_hips_by_any_name_or_none_are_scored(attributes: dict[str, str]) -> None:
    assert decided(labelled(**attributes)).matched


@pytest.mark.parametrize(
    "attributes",
    (
        {"BodyPartExamined": "KNEE"},
        {"BodyPartExamined": "SHOULDER", "StudyDescription": "MR hip and shoulder"},
        {"SeriesDescription": "STIR cor Knie"},
        {"StudyDescription": "MRT Schädel"},
        {"ProtocolName": "LWS nativ"},
    ),
)
def test_another_part_of_the_body_is_not_scored(attributes: dict[str, str]) -> None:
    assert decided(labelled(**attributes)).rule == NO_RULE


@pytest.mark.parametrize(
    ("words", "region"),
    (
        ("HIP_R", Region.HIP),
        ("cadera", Region.HIP),
        ("bacino", Region.HIP),
        ("heup links", Region.HIP),
        ("bäcken", Region.HIP),
        ("articulations sacro-iliaques", Region.HIP),
        ("SI joints", Region.HIP),
        ("femoral head", Region.HIP),
        ("股関節", Region.HIP),
        ("ABDOMENPELVIS", Region.HIP),
        ("knee and hip", Region.HIP),
        ("head", Region.OTHER),
        ("épaule", Region.OTHER),
        ("Wirbelsäule", Region.OTHER),
        ("TSPINE", Region.OTHER),
        ("Nierenbecken", Region.OTHER),
        ("hippocampus", Region.UNKNOWN),
        ("thigh", Region.UNKNOWN),
        ("spin echo", Region.UNKNOWN),
        ("ship", Region.UNKNOWN),
    ),
)
def test_words_name_a_part_of_the_body(words: str, region: Region) -> None:
    assert judge([words]).region is region


def test_a_header_that_says_nothing_decides_without_an_error() -> None:
    series = images()
    decision = decide(NOTHING, Dataset(), [received(each) for each in series], CAME)
    assert decision.rule == NO_RULE
    assert decide(NOTHING, Dataset(), [], CAME).rule == "no_images"


# --- conditions ----------------------------------------------------------------------------


def test_the_first_rule_that_matches_decides() -> None:
    rules = Rules(
        artifacts={},
        rules=(
            Rule(name="axial", conditions=(Orientation(plane="axial"),)),
            Rule(name="all", action=Action.IGNORE),
            Rule(name="never"),
        ),
    )
    assert decided(images(plane="axial"), rules).rule == "axial"
    decision = decided(images(), rules)
    assert (decision.matched, decision.rule) == (False, "all")
    assert [trial.rule.name for trial in decision.tried] == ["axial", "all"]


def test_the_plane_is_taken_from_the_geometry_up_to_40_degrees() -> None:
    rules = Rules(
        artifacts={}, rules=(Rule(name="coronal", conditions=(Orientation(plane="coronal"),)),)
    )
    for angle, matched in ((0.0, True), (39.5, True), (41.0, False), (90.0, False)):
        series = images()
        for image in series:
            image.SeriesDescription = "AX"
            turned = [1, 0, 0, 0, math.sin(math.radians(angle)), -math.cos(math.radians(angle))]
            image.ImageOrientationPatient = [round(value, 8) for value in turned]
        assert decided(series, rules).matched is matched, angle


@pytest.mark.parametrize(
    ("tests", "holds"),
    (
        ({"attribute": "SeriesDescription", "pattern": "^cor.*stir"}, True),
        ({"attribute": "SeriesDescription", "pattern": "post"}, False),
        ({"attribute": "BodyPartExamined", "one_of": ("pelvis", "HIP")}, True),
        ({"attribute": "BodyPartExamined", "one_of": ("KNEE",)}, False),
        ({"attribute": "MagneticFieldStrength", "low": 1.5, "high": 1.5}, True),
        ({"attribute": "MagneticFieldStrength", "low": 2.5}, False),
        ({"attribute": "MagneticFieldStrength", "one_of": ("1.50",)}, True),
        ({"attribute": "(0018,0087)", "low": 1.0}, True),
        ({"attribute": "InversionTime", "exists": True}, True),
        ({"attribute": "ContrastBolusAgent", "exists": True}, False),
        ({"attribute": "ContrastBolusAgent", "exists": False}, True),
        ({"attribute": "ContrastBolusAgent", "low": 0.0}, False),
        ({"attribute": "SeriesDescription", "low": 0.0}, False),
        ({"attribute": "ImageType", "one_of": ("M",)}, True),
        ({"attribute": "ScanningSequence", "one_of": ("IR",), "exists": True}, True),
    ),
)
def test_an_attribute_is_tested(tests: dict[str, Any], holds: bool) -> None:
    if "pattern" in tests:
        tests = {**tests, "pattern": compiled(tests["pattern"])}
    assert decided(images(), one(**tests)).matched is holds


def test_attributes_of_multi_frame_images_are_found_in_their_groups() -> None:
    series = images(enhanced=True)
    assert decided(series, one(attribute="InversionTimes", low=100.0)).matched
    assert decided(series, one(attribute="AnatomicRegionSequence.CodeMeaning", exists=True)).matched
    assert not decided(series, one(attribute="InversionTimes", high=100.0)).matched


def test_attributes_in_sequences_and_private_ones_are_found() -> None:
    series = images()
    item = Dataset()
    item.ScheduledProcedureStepDescription = "Hip protocol"
    series[0].RequestAttributesSequence = [item]
    block = series[0].private_block(0x0019, "MAKER", create=True)
    block.add_new(0x10, "LO", "tirm")
    path = "RequestAttributesSequence.ScheduledProcedureStepDescription"
    assert decided(series, one(attribute=path, pattern=compiled("hip"))).matched
    assert decided(series, one(attribute="RequestAttributesSequence", exists=True)).matched
    assert decided(series, one(attribute="(0019,1010)", one_of=("TIRM",))).matched


def test_where_a_series_came_from_is_a_condition() -> None:
    network = (ipaddress.ip_network("10.0.0.0/24"),)
    for condition, holds in (
        (From(calling=("MR1",)), True),
        (From(calling=("MR2",)), False),
        (From(called=("OTHER", "HIPSCORE")), True),
        (From(called=("OTHER",)), False),
        (From(peer=network), True),
        (From(peer=(ipaddress.ip_network("10.0.1.0/24"),)), False),
        (From(calling=("MR1",), peer=network), True),
        (From(calling=("MR2",), peer=network), False),
    ):
        rules = Rules(artifacts={}, rules=(Rule(name="from", conditions=(condition,)),))
        assert decided(images(), rules).matched is holds, condition
    over_ipv6 = Came(calling_aet="MR1", called_aet="HIPSCORE", peer="::ffff:10.0.0.7")
    assert From(peer=network).admits(over_ipv6)
    assert not From(peer=network).admits(Came(calling_aet="", called_aet="", peer=""))


def test_the_ledger_gets_conditions_and_no_value_of_an_image() -> None:
    series = images()
    for image in series:
        image.PatientName, image.PatientID = "Secret^Patient", "4711"
        image.SeriesDescription = "STIR cor Secret"
    rules = Rules(
        artifacts={},
        rules=(
            Rule(
                name="some",
                conditions=(
                    Attribute(path=("PatientID",), one_of=("0815",)),
                    Attribute(path=("PatientName",), pattern=compiled("Hidden")),
                    Attribute(path=("SeriesDescription",), pattern=compiled("knee")),
                    Not(part=Derived()),
                ),
            ),
        ),
    )
    decision = decided(series, rules)
    told = " ".join(decision.explanation)
    assert "SeriesDescription matches /knee/" in told
    for secret in ("Secret", "4711", "0815", "Hidden"):
        assert secret not in told
    found = {check.text: check.found for check in decision.tried[0].checks}
    assert found["SeriesDescription matches /knee/"] == "STIR cor Secret"
    assert all("4711" not in each and "Patient" not in each for each in found.values())


# --- what goes where -----------------------------------------------------------------------


def settings(path: Path | None = None, **more: Any) -> Settings:
    return Settings(rules=path, **more)


def written(folder: Path, text: str) -> Path:
    path = folder / "rules.toml"
    path.write_text(text, "utf-8")
    return path


TWO_HOSPITALS = f"""
[[destination]]
name = "north"
address = "{PACS}"

[[destination]]
name = "south"
address = "{ARCHIVE}"
artifacts = ["seg", "pdf"]

[[destination]]
name = "ris"
address = "{RIS}"
receiving_application = "RIS"

[[rule]]
name = "north"
from = {{ called = "HIPS_NORTH" }}
destinations = ["north", "ris"]

[[rule]]
name = "south"
from = {{ called = "HIPS_SOUTH" }}
destinations = ["south"]
"""


def test_without_a_file_seg_and_sr_go_everywhere_and_oru_to_hl7() -> None:
    for kind in ArtifactKind:
        dicom = kind in SENT or kind is ArtifactKind.REJECTION
        assert travels(NOTHING, "hip-fat-suppressed", PACS, kind) is dicom
        assert travels(NOTHING, "hip-fat-suppressed", ARCHIVE, kind) is dicom
        assert travels(NOTHING, "hip-fat-suppressed", RIS, kind) is (kind is ArtifactKind.ORU)


def test_each_rule_sends_to_its_destinations_what_they_want(tmp_path: Path) -> None:
    rules = load_rules(settings(written(tmp_path, TWO_HOSPITALS)))
    goes = {
        (rule, address, kind)
        for rule in ("north", "south")
        for address in (PACS, ARCHIVE, RIS)
        for kind in (*SENT, ArtifactKind.SC, ArtifactKind.PDF, ArtifactKind.ORU)
        if travels(rules, rule, address, kind)
    }
    assert goes == {
        ("north", PACS, ArtifactKind.SEG),
        ("north", PACS, ArtifactKind.SR),
        ("north", RIS, ArtifactKind.ORU),
        ("south", ARCHIVE, ArtifactKind.SEG),
        ("south", ARCHIVE, ArtifactKind.PDF),
    }


@pytest.mark.parametrize("rule", (EXPLAINED, ORDERED, "a rule that is no more"))
def test_what_no_rule_matched_stays_in_its_hospital(tmp_path: Path, rule: str) -> None:
    rules = load_rules(settings(written(tmp_path, TWO_HOSPITALS)))

    def goes(called: str) -> set[str]:
        came = Came(calling_aet="MR1", called_aet=called, peer="10.0.0.7")
        return {
            address
            for address in (PACS, ARCHIVE, "OTHER@10.0.0.6:104")
            if travels(rules, rule, address, ArtifactKind.SEG, came=came)
        }

    assert goes("HIPS_NORTH") == {PACS}
    assert goes("HIPS_SOUTH") == {ARCHIVE}
    assert goes("ANOTHER") == {"OTHER@10.0.0.6:104"}


def test_the_trial_of_doctor_is_scored_by_any_rules_and_sent_nowhere(tmp_path: Path) -> None:
    came = Came(calling_aet=TRIAL_AET, called_aet="HIPSCORE", peer="127.0.0.1")
    nobody = Rules(artifacts={}, rules=(Rule(name="none", action=Action.IGNORE),))
    decision = decided(images(), nobody, came)
    assert decision.matched
    for rules in (nobody, load_rules(settings(written(tmp_path, TWO_HOSPITALS)))):
        assert not any(
            travels(rules, decision.rule, address, kind, came=came)
            for address in (PACS, ARCHIVE, RIS)
            for kind in ArtifactKind
        )


def test_only_what_somebody_wants_is_built(tmp_path: Path) -> None:
    always = {
        ArtifactKind.SEG,
        ArtifactKind.SR,
        ArtifactKind.SR_FALLBACK,
        ArtifactKind.OVERLAY,
        ArtifactKind.PDF,
    }
    assert built(NOTHING, [PACS, ARCHIVE]) == always
    assert built(NOTHING, [PACS, RIS]) == {*always, ArtifactKind.ORU}
    for wish in ('["sc"]', '"auto"'):
        text = f'[[destination]]\nname = "a"\naddress = "{PACS}"\nartifacts = {wish}\n'
        rules = load_rules(settings(written(tmp_path, text)))
        assert built(rules, [PACS]) == {*always, ArtifactKind.SC}
        assert receiver(rules, PACS).auto is (wish == '"auto"')


def test_destinations_of_the_file_add_to_those_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "archive.auth").write_text("Bearer 123", "utf-8")
    text = f"""
    [[destination]]
    name = "archive"
    address = "{ARCHIVE}/"
    authorization_file = "archive.auth"
    [[destination]]
    name = "pacs"
    address = "{PACS}"
    commitment = false
    """
    configured = settings(written(tmp_path, text), destinations=(PACS, "B@10.0.0.6:104"))
    rules = load_rules(configured)
    assert [str(each) for each in destinations(configured, rules)] == [
        PACS,
        "B@10.0.0.6:104",
        ARCHIVE,
    ]
    assert [each.ae_title for each in peers(configured, rules)] == ["PACS", "B"]
    assert receiver(rules, ARCHIVE).authorization_file == str(tmp_path / "archive.auth")
    assert receiver(rules, PACS).commitment is False
    assert receiver(rules, "B@10.0.0.6:104").commitment is None
    assert rules.in_force[-1].name == "hip-fat-suppressed"  # a file without rules changes none


# --- the file ------------------------------------------------------------------------------


def test_every_key_of_the_file_becomes_a_condition(tmp_path: Path) -> None:
    text = """
    [[rule]]
    name = "all-of-it"
    action = "ignore"
    from = { calling = ["MR1", "MR2"], called = "HIPSCORE", peer = "10.0.0.0/24" }
    orientation = "coronal"
    fat_suppressed = true
    body_part = "hip"
    derived = false
    [[rule.include]]
    attribute = "MagneticFieldStrength"
    min = 1
    max = 3.5
    [[rule.include]]
    any = [ { attribute = "BodyPartExamined", any_of = ["HIP", "PELVIS"] },
            { attribute = "SeriesDescription", regex = 'hip\\b' } ]
    [[rule.exclude]]
    attribute = "ContrastBolusAgent"
    exists = true
    """
    rules = load_rules(settings(written(tmp_path, text)))
    decision = decided(images(), rules)
    assert (decision.matched, decision.rule) == (False, "all-of-it")
    assert [check.text for check in decision.tried[0].checks] == [
        "calling AE title MR1 or MR2 and called AE title HIPSCORE and peer 10.0.0.0/24",
        "coronal slices",
        "fat suppressed",
        "hip or pelvis, or no part of the body named",
        "not computed from other images",
        "MagneticFieldStrength is at least 1 and is at most 3.5",
        "(BodyPartExamined is HIP or PELVIS or SeriesDescription matches /hip\\b/)",
        "not: ContrastBolusAgent exists",
    ]
    contrast = images()
    contrast[0].ContrastBolusAgent = "Gd"
    assert decided(contrast, rules).rule == NO_RULE


RULE = '[[rule]]\nname = "r"\n'
DESTINATION = f'[[destination]]\nname = "d"\naddress = "{PACS}"\n'


@pytest.mark.parametrize(
    ("text", "mistake"),
    (
        ("[[rule]", "is no TOML"),
        ("[[rules]]\nname = 'r'", "rules: unknown key; did you mean rule? allowed: rule, destinat"),
        (
            RULE + 'orientaton = "coronal"',
            "rule 'r': orientaton: unknown key; did you mean orienta",
        ),
        (
            RULE + 'orientation = "oblique"',
            "rule 'r': orientation: 'oblique' is not allowed; write",
        ),
        (
            RULE + 'action = "maybe"',
            "rule 'r': action: 'maybe' is not allowed; write 'score' or 'ig",
        ),
        (RULE + "fat_suppressed = 'yes'", "rule 'r': fat_suppressed: 'yes' is not allowed"),
        (RULE + 'destinations = ["d"]', "rule 'r': destinations: 'd' is no destination; known: no"),
        (RULE + "destinations = []", "rule 'r': destinations: [] is not allowed"),
        (RULE + 'from = { call = "A" }', "rule 'r': from: call: unknown key; did you mean call"),
        (
            RULE + 'from = { peer = "10.0.0.0/99" }',
            "rule 'r': from: peer 1: '10.0.0.0/99': write an",
        ),
        (RULE + 'from = { calling = "A\\\\B" }', "rule 'r': from: calling 1: 'A\\\\B': "),
        ("[[rule]]\naction = 'score'", "rule 1: name: is missing"),
        ('[[rule]]\nname = "no_rule"', "rule 'no_rule': name: this one is ours"),
        ('[[rule]]\nname = "a b"', "rule 'a b': name: 'a b' is not allowed; a name has"),
        (RULE + RULE, "rule 'r': the name is given 2 times"),
        (RULE + "[[rule.include]]\nexists = true", "rule 'r': include 1: needs one of attribute"),
        (
            RULE + '[[rule.include]]\nattribute = "EchoTime"',
            "rule 'r': include 1: EchoTime: needs a test",
        ),
        (
            RULE + '[[rule.exclude]]\nattribute = "Echotime"\nmin = 1',
            "rule 'r': exclude 1: attribute: 'Echotime': no DICOM keyword",
        ),
        (
            RULE + '[[rule.exclude]]\nattribute = "EchoTime"\nmin = "1"',
            "rule 'r': exclude 1: min: '1': write a number, without quotes",
        ),
        (
            RULE + "[[rule.include]]\nattribute = 'SeriesDescription'\nregex = '(a+)+'",
            "rule 'r': include 1: regex: '(a+)+': nested quantifiers",
        ),
        (
            RULE + "[[rule.include]]\nany = [{ attribute = 'EchoTime', mni = 1 }]",
            "rule 'r': include 1: any 1: mni: unknown key; did you mean min?",
        ),
        (
            '[[destination]]\nname = "d"\naddress = "PACS"',
            "destination 'd': address: 'PACS' is not",
        ),
        (DESTINATION + 'artifacts = ["dicom"]', "destination 'd': artifacts"),
        (DESTINATION + 'artifacts = ["oru"]', "destination 'd': artifacts: 'oru' goes to HL7"),
        (
            DESTINATION + 'authorization_file = "x"',
            "destination 'd': authorization_file: for DICOMw",
        ),
        (
            f'[[destination]]\nname = "d"\naddress = "{ARCHIVE}"\nauthorization_file = "x"',
            "is no file",
        ),
        (
            f'[[destination]]\nname = "d"\naddress = "{RIS}"\nartifacts = ["seg"]',
            "destination 'd': artifacts: an HL7 receiver takes ['oru'] and nothing else",
        ),
        (
            f'[[destination]]\nname = "d"\naddress = "{RIS}"\ncommitment = true',
            "destination 'd': commitment: only a DICOM peer",
        ),
        (DESTINATION + DESTINATION.replace('"d"', '"e"'), "destination 'e': address"),
    ),
)
def test_a_mistake_is_one_line_that_says_where_and_what_is_allowed(
    tmp_path: Path, text: str, mistake: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RulesError) as caught:
        load_rules(settings(path))
    (line,) = caught.value.mistakes
    assert line.startswith(f"{path}: ")
    assert mistake in line
    assert "\n" not in line


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = RULE + 'orientation = "x"\nactoin = "score"\n' + DESTINATION + 'artifacts = "all"\n'
    with pytest.raises(RulesError) as caught:
        load_rules(settings(written(tmp_path, text)))
    assert len(caught.value.mistakes) == 3


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RulesError, match=r"nowhere\.toml: cannot be read: No such file"):
        load_rules(settings(tmp_path / "nowhere.toml"))


def test_the_example_is_empty_as_it_is_and_the_built_in_rules_without_its_marks(
    tmp_path: Path,
) -> None:
    example = Path(__file__).parents[2] / "deploy" / "rules.toml"
    assert load_rules(settings(example)) == NOTHING
    (tmp_path / "archive.auth").touch()
    lines = example.read_text("utf-8").splitlines()
    keys = [
        "name",
        "address",
        "a",
        "commit",
        "rec",
        "der",
        "or",
        "fat",
        "body",
        "from",
        "dest",
        "min",
        "exists",
    ]
    begins = ("# [[", *(f"# {key}" for key in keys))
    kept = [line.removeprefix("# ") for line in lines if line.startswith(begins)]
    rules = load_rules(settings(written(tmp_path, "\n".join(kept))))
    assert [rule.name for rule in rules.rules] == ["derived", "hip-fat-suppressed"]
    assert len(rules.receivers) == 3


# --- patterns ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ("(a+)+$", "(a|a)*$", "(?:a*)*$", "(a|b|ab)+$", "(?:(?:a?){20}){20}", "((a{1,9}){1,9})+"),
)
def test_patterns_whose_time_grows_exponentially_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nested quantifiers"):
        compiled(text)


@pytest.mark.parametrize("text", (".*.*.*.*x", "a?" * 24 + "a" * 24, "(a|a)" * 24, "x" * 501))
def test_patterns_with_too_many_ways_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"too long|at most 500"):
        compiled(text)


@pytest.mark.parametrize(
    "text",
    (
        r"(stir|tirm).*(hip|pelvis)",
        r"^MR\d{1,3}$",
        r"[^]a]+\)",
        r"(?:abc)*",
        r"^(?!.*post).*stir",
        ".*.*.*x",
        "a?" * 10 + "a" * 10,
    ),
)
def test_patterns_that_are_taken_are_quick_on_the_worst_value(text: str) -> None:
    pattern = compiled(text)
    began = time.process_time()
    pattern.search("a" * 128)
    pattern.search("stir" * 32)
    assert time.process_time() - began < 2.0


def test_a_value_is_searched_up_to_its_128th_character() -> None:
    series = images()
    series[0].ImageComments = "x" * 128 + "stir"
    assert not decided(series, one(attribute="ImageComments", pattern=compiled("stir"))).matched
    series[0].ImageComments = "x" * 124 + "stir"
    assert decided(series, one(attribute="ImageComments", pattern=compiled("stir"))).matched


# --- the commands --------------------------------------------------------------------------


def saved(series: Sequence[Dataset], folder: Path) -> Path:
    folder.mkdir()
    for number, image in enumerate(series):
        image.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, list(arguments))
    return done.exit_code, done.output


def test_rules_test_says_which_rule_matched_and_where_results_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIPSCORE_DESTINATIONS", PACS)
    code, output = run("test", str(saved(images(), tmp_path / "a")))
    assert code == 0
    assert "scored by the rule hip-fat-suppressed" in output
    assert f"results to {PACS}: seg, sr" in output


def test_rules_test_says_which_condition_failed_and_what_was_found(tmp_path: Path) -> None:
    saved(images(plane="axial"), tmp_path / "a")
    code, output = run("test", str(tmp_path))
    assert code == 0
    assert "ignored: no rule matches" in output
    assert "NO   coronal slices; found: axial, 90° from coronal" in output
    assert "says why (HIPSCORE_EXPLAIN_UNMATCHED)" in output


def test_rules_test_plays_the_sender(tmp_path: Path) -> None:
    rules = written(tmp_path, TWO_HOSPITALS)
    folder = saved(images(), tmp_path / "a")
    for called, expected in (("HIPS_NORTH", "north"), ("HIPS_SOUTH", "south"), ("X", NO_RULE)):
        arguments = ("--rules", str(rules), "--to", called, "--from", "MR1", "--json")
        code, output = run("test", str(folder), *arguments)
        assert code == 0
        (series,) = json.loads(output[output.index("[") :])
        assert (series["rule"], series["images"]) == (expected, 5)
        assert set(series["results_to"]) == {
            "north": {PACS, RIS},
            "south": {ARCHIVE},
        }.get(expected, set())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    (
        (lambda p: ["test", str(p / "empty")], 1, "no DICOM image in"),
        (lambda p: ["test", str(p / "nowhere")], 2, "does not exist"),
        (lambda p: ["test", str(p), "--peer", "scanner"], 2, "is no address"),
        (lambda p: ["show", "--rules", str(p / "broken.toml")], 1, "colour: unknown key"),
    ),
)
def test_the_commands_fail_with_one_clear_line(
    tmp_path: Path, arguments: Callable[[Path], list[str]], code: int, says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.toml").write_text(RULE + "colour = 1", "utf-8")
    ended, output = run(*arguments(tmp_path))
    assert ended == code
    assert says in output


def test_rules_show_lists_rules_and_destinations(tmp_path: Path) -> None:
    code, output = run("show", "--rules", str(written(tmp_path, TWO_HOSPITALS)))
    assert code == 0
    assert "  north → scored; only to north, ris\n      called AE title HIPS_NORTH\n" in output
    assert f"  south = {ARCHIVE}: seg, pdf\n" in output
    code, output = run("show", "--json")
    assert code == 0
    assert [each["name"] for each in json.loads(output)["rules"]] == [
        "derived",
        "hip-fat-suppressed",
    ]
