"""The report as PDF: what stands on the page, whatever the name, and that it is a valid object."""

from __future__ import annotations

import copy
import dataclasses
import io
import re
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage
from reportlab.platypus import KeepTogether, Paragraph, Table

from hipscore.domain import RESEARCH_USE, Remark, StudyIdentity
from hipscore.reporting import ReportContext, captures, pages, wording
from hipscore.reporting.header import headers
from hipscore.reporting.pdf import build_pdf
from hipscore.reporting.source import to_bytes
from tests.contract.factories import CARD, CASES, CONTEXT, Case, case, dciodvfy
from tests.contract.test_change import earlier

TOLERATED = ("Missing attribute or value that would be needed to build DICOMDIR - Study ID",)


def built(source: Case, context: ReportContext = CONTEXT) -> Dataset:
    return build_pdf(source.images, source.volume, source.masks, source.findings, CARD, context)


@cache
def of(name: str) -> Dataset:
    return built(case(name))


def document(dataset: Dataset) -> bytes:
    data: bytes = dataset.EncapsulatedDocument[: dataset.EncapsulatedDocumentLength]
    return data


def words(source: Case, context: ReportContext = CONTEXT) -> str:
    """Everything that is written on the pages, in order."""
    return "\n".join(_texts(pages._story(scene(source, context))))


def scene(source: Case, context: ReportContext = CONTEXT) -> captures.Scene:
    [header, *_] = headers(source.images, context)
    return captures.Scene(
        volume=source.volume,
        masks=source.masks,
        findings=source.findings,
        card=CARD,
        context=context,
        header=header,
    )


def _texts(flowables: object) -> Iterator[str]:
    if isinstance(flowables, str):
        yield flowables
    elif isinstance(flowables, Paragraph):
        yield flowables.getPlainText()
    elif isinstance(flowables, Table):
        yield from _texts(vars(flowables)["_cellvalues"])
    elif isinstance(flowables, KeepTogether):
        yield from _texts(vars(flowables)["_content"])
    elif isinstance(flowables, list | tuple):
        for each in flowables:
            yield from _texts(each)


@pytest.mark.computes
@pytest.mark.parametrize("name", list(CASES))
def test_conforms_to_the_standard(name: str, tmp_path: Path) -> None:
    verdict = dciodvfy(to_bytes(of(name)), tmp_path)
    assert verdict.errors == []
    assert [line for line in verdict.warnings if not line.endswith(TOLERATED)] == []


def test_is_a_document_of_the_study_about_its_images() -> None:
    source = case("scored")
    read = pydicom.dcmread(io.BytesIO(to_bytes(of("scored"))))
    assert read.SOPClassUID == EncapsulatedPDFStorage
    assert read.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert read.StudyInstanceUID == source.images[0].StudyInstanceUID
    assert read.Modality == "DOC"
    assert read.SeriesNumber == 9004
    assert read.SeriesDescription == "hipscore PDF (research) series 3 2024-01-02 13:30:15"
    assert RESEARCH_USE in read.DocumentTitle
    assert read.ConceptNameCodeSequence[0].CodeValue == "126000"
    named = [item.ReferencedSOPInstanceUID for item in read.SourceInstanceSequence]
    assert named == [image.SOPInstanceUID for image in source.images]
    assert document(read).startswith(b"%PDF-1.")
    assert document(read).rstrip().endswith(b"%%EOF")
    assert len(read.EncapsulatedDocument) % 2 == 0


@pytest.mark.parametrize("name", ("scored", "not scorable"))
def test_built_twice_is_the_same_to_the_byte(name: str) -> None:
    assert to_bytes(built(case(name))) == to_bytes(of(name))


@pytest.mark.parametrize("name", list(CASES))
def test_there_are_one_or_two_pages_and_every_letter_is_embedded(name: str) -> None:
    data = document(of(name))
    assert 1 <= len(re.findall(rb"/Type /Page\b", data)) <= 2
    assert data.count(b"/FontFile2") >= 2


def test_the_pictures_are_in_it_to_the_pixel() -> None:
    source = case("scored")
    wanted = [np.asarray(tile) for tile, _ in captures.tiles(scene(source), 300)]
    found = []
    for head in re.finditer(
        rb"/Predictor 15.*?/Width (\d+).*?stream\n", document(of("scored")), re.DOTALL
    ):
        data = zlib.decompressobj().decompress(document(of("scored"))[head.end() :])
        rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + 3 * int(head[1]))
        assert set(rows[:, 0]) == {2}  # less the row above
        up = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8)
        found.append(up.reshape(len(rows), int(head[1]), 3))
    assert len(found) == len(wanted) == 4
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one, other)


def test_it_is_not_larger_than_it_has_to_be() -> None:
    data = document(of("scored"))
    assert b"ASCII85" not in data
    assert len(data) < 400_000


def named(name: str, patient_id: str = "ID-7") -> Case:
    images = [copy.deepcopy(image) for image in case("not scorable").images]
    for image in images:
        image.SpecificCharacterSet = "ISO_IR 192"
        image.PatientName = name
        image.PatientID = patient_id
    return dataclasses.replace(case("not scorable"), images=tuple(images))


@pytest.mark.parametrize(
    ("name", "shown"),
    (
        ("Doe^Jane", "Doe, Jane"),
        ("Müller^Jürgen^Karl^Dr.^PhD", "Müller, Dr. Jürgen Karl PhD"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou"),
        ("Őry^Łukasz", "Ory, Łukasz"),
        ("Παπα^Μ", "????, ?"),
        ("Иванова^О", "???????, ?"),
        ("=山田^太郎", "??, ??"),
        ("", ""),
    ),
)
def test_a_name_is_written_in_the_letters_there_are(name: str, shown: str) -> None:
    assert pages.shown(pages.readable(name)) == shown


@pytest.mark.parametrize(
    "name", ("Παπα^Μ=山田", "Иванова^О", "محمد^علي", "a\u0301^\u200b", "<b>^&")
)
def test_no_name_breaks_the_page(name: str, tmp_path: Path) -> None:
    dataset = built(named(name, "漢<&>"))
    assert document(dataset).startswith(b"%PDF")
    assert dataset.PatientName == name
    assert dciodvfy(to_bytes(dataset), tmp_path).errors == []


def test_many_remarks_go_to_another_page_and_none_is_lost() -> None:
    remarks = tuple(Remark(code="noisy_image", text=f"remark {n}: " + "x" * 150) for n in range(30))
    source = case("scored")
    findings = dataclasses.replace(source.findings, quality=remarks)
    data = document(built(dataclasses.replace(source, findings=findings)))
    assert len(re.findall(rb"/Type /Page\b", data)) >= 2


def test_the_page_says_whose_it_is_what_was_measured_and_what_it_is_not() -> None:
    source = case("scored")
    text = words(source, dataclasses.replace(CONTEXT, identity=ORDER))
    right, left = source.findings.hips
    for expected in (
        str(source.images[0].PatientID),
        "ACC-4711",
        "Ref, Anna",
        f"UNet-score {source.findings.unet_score:.2f}",
        f"{right.unet_score:.2f}\n{left.unet_score:.2f}\n{source.findings.unet_score:.2f}",
        f"{right.mean_ratio:.3f}\n{left.mean_ratio:.3f}\n-",
        f"{CARD.id} {CARD.version}",
        CARD.sha256[:16],
        "no diagnosis",
    ):
        assert expected in text, expected


def test_a_score_that_does_not_compare_says_so_beside_the_difference() -> None:
    text = words(case("scored"), dataclasses.replace(CONTEXT, earlier=(earlier(model="x 1"),)))
    assert "Since 2023-01-02: UNet-score" in text
    assert "(+2.00)" in text
    assert "Not comparable as it stands: scored by x 1 then" in text
    assert wording.REPEATABILITY in text
    plain = words(case("scored"), dataclasses.replace(CONTEXT, earlier=(earlier(),)))
    assert "Not comparable" not in plain


def test_every_remark_and_reason_is_on_the_page() -> None:
    assert case("one hip of two scored").findings.quality[0].text in words(
        case("one hip of two scored")
    )
    assert "Left hip not scored" in words(case("one hip of two scored"))
    assert "Not scored: 4 slices show ≥ 100 mm² of femoral head" in words(case("not scorable"))


def test_a_name_that_is_not_whole_says_so() -> None:
    assert "? stands for" not in words(named("Doe^Jane"))
    assert "? stands for a character" in words(named("Иванова^О"))
    assert "? stands for a character" in words(named("Doe^Jane", "漢-7"))
    assert "? stands for a character" not in words(named("Doe^Jane=山田"))


ORDER = StudyIdentity(accession_number="ACC-4711", referring_physician="Ref^Anna")
