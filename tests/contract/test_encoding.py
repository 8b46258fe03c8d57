"""How reports are written: faster than pydicom alone would, and to the byte the same."""

from __future__ import annotations

import io
from collections.abc import Callable

import pydicom
import pytest
from highdicom.sr import ComprehensiveSR, ValueTypeValues
from highdicom.sr.utils import find_content_items
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage

from hipscore.domain import ArtifactKind
from hipscore.pipeline import Analysis
from hipscore.pipeline import report as artifacts
from hipscore.reporting import codes, document
from hipscore.reporting.header import headers
from hipscore.reporting.seg import build_seg
from hipscore.reporting.source import freeze, to_bytes
from hipscore.reporting.sr import build_sr
from tests.contract.factories import CARD, CASES, CONTEXT, case, report, segmentation

pytestmark = pytest.mark.computes


def by_pydicom(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def item(**values: object) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def plain(**values: object) -> Dataset:
    made = item(SOPClassUID=MRImageStorage, SOPInstanceUID="1.2.3", **values)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def with_shared_items() -> Dataset:
    code = item(CodeValue="1", CodingSchemeDesignator="99X", CodeMeaning="odd")
    deep = item(ConceptNameCodeSequence=[code], ConceptCodeSequence=[code])
    return plain(ContentSequence=[deep, item(ContentSequence=[deep, deep]), item()])


def with_names() -> Dataset:
    made = plain(
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
        PatientName="Yamada^Tarou=山田^太郎",
        OtherPatientIDsSequence=[item(PatientID="17", IssuerOfPatientID="山田")],
    )
    made.ReferringPhysicianName = "山田^花子"
    return made


def with_a_repertoire_of_its_own() -> Dataset:
    inner = item(SpecificCharacterSet="ISO_IR 100", PatientID="Müller")
    return plain(SpecificCharacterSet="ISO_IR 192", OtherPatientIDsSequence=[inner])


def with_values_that_depend_on_others() -> Dataset:
    lut = item(LUTDescriptor=[2, 0, 8], LUTExplanation="x", LUTData=b"\x01\x00\x02\x00")
    return plain(PixelRepresentation=1, ModalityLUTSequence=[lut], SmallestImagePixelValue=-3)


def of_undefined_length() -> Dataset:
    made = plain(ContentSequence=[item(TextValue="a")], ReferencedImageSequence=[])
    made["ContentSequence"].is_undefined_length = True
    made.ContentSequence[0].is_undefined_length_sequence_item = True
    return made


def read_from_a_file() -> Dataset:
    return read(by_pydicom(with_names()))


def read_in_another_syntax() -> Dataset:
    made = with_names()
    made.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    found = read(by_pydicom(made))
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return found


def read_and_put_into_another() -> Dataset:
    return plain(ReferencedImageSequence=[item(OtherPatientIDsSequence=[read_from_a_file()])])


@pytest.mark.parametrize(
    "made",
    (
        with_shared_items,
        with_names,
        with_a_repertoire_of_its_own,
        with_values_that_depend_on_others,
        of_undefined_length,
        read_from_a_file,
        read_in_another_syntax,
        read_and_put_into_another,
    ),
)
def test_an_object_is_written_as_pydicom_writes_it(made: Callable[[], Dataset]) -> None:
    assert to_bytes(made()) == by_pydicom(made())


@pytest.mark.parametrize("made", (with_shared_items, of_undefined_length))
def test_a_frozen_sequence_is_the_same_to_the_byte(made: Callable[[], Dataset]) -> None:
    frozen = made()
    freeze(frozen, "ContentSequence")
    assert to_bytes(frozen) == by_pydicom(made())
    assert frozen.ContentSequence == made().ContentSequence  # decoded where it is looked at
    assert to_bytes(frozen) == by_pydicom(made())


@pytest.mark.parametrize("name", ("scored", "enhanced", "clean"))
def test_a_segmentation_is_written_as_pydicom_writes_it(name: str) -> None:
    data = to_bytes(segmentation(name))
    assert data == by_pydicom(segmentation(name))


@pytest.mark.parametrize("name", list(CASES))
def test_both_reports_hold_the_same_content(name: str) -> None:
    one, other = case(name).sr(), case(name).sr(comprehensive3d=False)
    assert one.ContentSequence == other.ContentSequence
    differ = {it.keyword for it in one if other[it.tag] != it}
    assert differ == {"SOPClassUID", "SOPInstanceUID", "InstanceNumber"}
    assert one.keys() == other.keys()


def test_the_second_report_leaves_the_first_alone() -> None:
    first = case("scored").sr()
    before = to_bytes(first)
    document.comprehensive(first, CONTEXT).SOPInstanceUID = "1.2.3"
    assert to_bytes(first) == before


@pytest.mark.parametrize("name", list(CASES))
def test_nothing_in_the_content_is_reserved_for_comprehensive_3d(name: str) -> None:
    found = ComprehensiveSR.from_dataset(read(to_bytes(report(name, comprehensive3d=False))))
    assert not find_content_items(found, value_type=ValueTypeValues.SCOORD3D, recursive=True)


@pytest.mark.parametrize("name", list(CASES))
def test_the_pipeline_writes_what_the_builders_build(name: str) -> None:
    source = case(name)
    analysis = Analysis(
        images=source.images, findings=source.findings, volume=source.volume, masks=source.masks
    )
    kinds = frozenset({ArtifactKind.SEG, ArtifactKind.SR, ArtifactKind.SR_FALLBACK})
    written = {it.kind: it.data for it in artifacts(analysis, CARD, context=CONTEXT, kinds=kinds)}
    seg = source.seg()
    assert written.get(ArtifactKind.SEG) == (to_bytes(seg) if seg is not None else None)
    assert written[ArtifactKind.SR] == to_bytes(source.sr())
    assert written[ArtifactKind.SR_FALLBACK] == to_bytes(source.sr(comprehensive3d=False))


def test_headers_are_left_as_they_were() -> None:
    source = case("scored")
    tidy = headers(source.images, CONTEXT)
    before = [each.to_json_dict() for each in tidy]
    assert source.volume is not None
    found = (source.images, source.volume, source.masks)
    seg = build_seg(*found, CARD, CONTEXT, tidy=tidy)
    build_sr(*found, source.findings, CARD, CONTEXT, seg=seg, tidy=tidy)
    assert [each.to_json_dict() for each in tidy] == before


def test_codes_that_all_reports_share_are_never_changed() -> None:
    for name in CASES:
        case(name).sr()
    known = [it for it in vars(codes).values() if isinstance(it, Code)]
    assert known
    for code in known:
        assert codes.shared(code) is codes.shared(code)
        assert list(codes.shared(code)) == list(codes.concept(code))
