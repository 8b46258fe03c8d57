"""The note that retracts a result: what it names, why, and whose study it belongs to."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pydicom
import pytest
from highdicom.ko import KeyObjectSelectionDocument
from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage

from hipscore.reporting import SopReference
from hipscore.reporting.pdf import build_pdf
from hipscore.reporting.rejection import TITLES, Why, build_rejection
from hipscore.reporting.sc import build_sc
from hipscore.reporting.source import to_bytes
from tests.contract.factories import (
    CARD,
    CONTEXT,
    case,
    content,
    dciodvfy,
    dsrdump,
    every_item,
    report,
    segmentation,
)

pytestmark = pytest.mark.computes

TOLERATED = ("Missing attribute or value that would be needed to build DICOMDIR - Study ID",)


def reference(dataset: Dataset) -> SopReference:
    return SopReference(
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        study_instance_uid=str(dataset.StudyInstanceUID),
    )


def objects() -> list[Dataset]:
    source = case("scored")
    found = (source.images, source.volume, source.masks, source.findings, CARD, CONTEXT)
    return [segmentation("scored"), report("scored"), *build_sc(*found)[:3], build_pdf(*found)]


def note(why: Why = Why.QUALITY, whose: Dataset | None = None) -> Dataset:
    rejected = [reference(each) for each in objects()]
    return build_rejection(report("scored") if whose is None else whose, rejected, why, CONTEXT)


@pytest.mark.parametrize("why", list(Why))
def test_conforms_to_the_standard(why: Why, tmp_path: Path) -> None:
    verdict = dciodvfy(to_bytes(note(why)), tmp_path)
    assert verdict.errors == []
    assert [line for line in verdict.warnings if not line.endswith(TOLERATED)] == []


@pytest.mark.parametrize(
    ("why", "code"), ((Why.QUALITY, "113001"), (Why.SAFETY, "113037"), (Why.WORKLIST, "113038"))
)
def test_the_title_says_why(why: Why, code: str, tmp_path: Path) -> None:
    built = note(why)
    assert built.ConceptNameCodeSequence[0].CodeValue == code
    assert built.ConceptNameCodeSequence[0].CodingSchemeDesignator == "DCM"
    modifiers = content(built, "Document Title Modifier")
    assert len(modifiers) == (why is Why.QUALITY)  # TID 2010: only there is one wanted
    assert TITLES[why].meaning in dsrdump(to_bytes(built), tmp_path)


def test_everything_that_is_retracted_is_named_in_the_tree_and_in_the_evidence() -> None:
    built = note()
    wanted = {each.SOPInstanceUID: each.SOPClassUID for each in objects()}
    tree = {
        item.ReferencedSOPInstanceUID: item.ReferencedSOPClassUID
        for source in content(built, "Source")
        for item in source.ReferencedSOPSequence
    }
    assert tree == wanted
    [study] = built.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == built.StudyInstanceUID
    evidence = {
        item.ReferencedSOPInstanceUID: series.SeriesInstanceUID
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert evidence == {each.SOPInstanceUID: each.SeriesInstanceUID for each in objects()}


def test_pictures_are_image_items_and_documents_composite_ones() -> None:
    kinds = [item.ValueType for item in content(note(), "Source")]
    assert kinds == ["IMAGE", "COMPOSITE", "IMAGE", "IMAGE", "IMAGE", "COMPOSITE"]


def test_it_belongs_to_the_patient_and_study_of_the_report() -> None:
    built, whose = note(), report("scored")
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate"):
        assert built[keyword].value == whose[keyword].value
    assert built.Modality == "KO"
    assert built.SOPClassUID == KeyObjectSelectionDocumentStorage
    assert built.SeriesInstanceUID != whose.SeriesInstanceUID
    assert built.SeriesNumber == 9005
    assert built.SeriesDescription == "hipscore withdrawal (research) 2024-01-02 13:30:15"


def test_highdicom_reads_it_back() -> None:
    read = KeyObjectSelectionDocument.from_dataset(
        pydicom.dcmread(pydicom.filebase.DicomBytesIO(to_bytes(note())))
    )
    first = objects()[0]
    study, series, _ = read.resolve_reference(first.SOPInstanceUID)
    assert (study, series) == (first.StudyInstanceUID, first.SeriesInstanceUID)


def test_there_is_no_free_text_but_ours() -> None:
    texts = {item.TextValue for item in every_item(note()) if "TextValue" in item}
    assert any("withdrawn by an operator" in text for text in texts)
    assert all("hipscore" in text or text in {"HIPSCORE", "1"} for text in texts)


def test_built_twice_is_the_same_to_the_byte() -> None:
    assert to_bytes(note()) == to_bytes(note())


def test_the_order_is_named_again() -> None:
    whose = copy.deepcopy(report("scored"))
    whose.AccessionNumber = "A-5"
    built = note(whose=whose)
    assert built.AccessionNumber == "A-5"
    assert built.ReferencedRequestSequence[0].AccessionNumber == "A-5"


def test_nothing_to_retract_is_no_note() -> None:
    with pytest.raises(ValueError, match="At least one object"):
        build_rejection(report("scored"), [], Why.SAFETY, dataclasses.replace(CONTEXT))
