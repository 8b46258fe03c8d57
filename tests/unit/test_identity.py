"""Whose study it is: from headers in order, in disorder, and in other alphabets."""

from __future__ import annotations

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from hipscore.domain import StudyIdentity
from hipscore.identity import identity


def an_image(**attributes: object) -> Dataset:
    image = Dataset()
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


def test_nothing_is_known_of_an_empty_header() -> None:
    assert identity(Dataset()) == StudyIdentity()
    assert identity(Dataset()).patient_key is None


def test_names_are_decoded_by_the_character_set_of_the_image() -> None:
    image = an_image(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientID="1")
    image.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    assert identity(image).patient_name == "Yamada^Tarou=山田^太郎=やまだ^たろう"


def test_the_order_is_read_from_the_request_where_the_study_does_not_name_it() -> None:
    request = an_image(
        AccessionNumber="A7", RequestedProcedureID="P7", RequestedProcedureDescription="MR hip"
    )
    found = identity(an_image(RequestAttributesSequence=[request]))
    assert found.accession_number == "A7"
    assert found.requested_procedure_id == "P7"
    assert found.requested_procedure_description == "MR hip"
    assert found.order_source == "images"


def test_the_key_of_a_patient_depends_on_issuer_and_id_alone() -> None:
    one = identity(an_image(PatientID="7", IssuerOfPatientID="A", PatientName="Doe^Jane"))
    same = identity(an_image(PatientID="7", IssuerOfPatientID="A", PatientName="Roe^Jane"))
    other = identity(an_image(PatientID="7", IssuerOfPatientID="B"))
    shifted = identity(an_image(PatientID="A7"))
    assert one.patient_key == same.patient_key
    assert len({one.patient_key, other.patient_key, shifted.patient_key}) == 3
    assert one.patient_key != "7"


def test_what_has_another_form_is_left_out_and_what_is_too_long_is_cut() -> None:
    image = an_image(PatientSex="X")
    for tag, vr, value in (
        (Tag(0x0008, 0x1030), "LO", b"hip\x1b[2J" + b"x" * 77),
        (Tag(0x0008, 0x0020), "DA", b"yesterday "),
    ):
        image[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    found = identity(image)
    assert found.sex == ""
    assert found.study_date == ""
    assert found.study_description.startswith("hip")
    assert len(found.study_description) <= 64
    assert "\x1b" not in found.study_description
