"""One test for each defect the fuzzer found in the core."""

from __future__ import annotations

import struct
import warnings

import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from hipscore import pixels, series
from hipscore.domain import ReasonCode, Unsuitable
from hipscore.header import Unreadable, read_header, read_image
from tests import stacks
from tests.fuzz import analysing
from tests.fuzz.encoding import ITEM, UNDEFINED, Coding, Element
from tests.fuzz.lies import _codestream
from tests.fuzz.mutants import as_file
from tests.fuzz.sources import phantom_series


def refused(stream: bytes, syntax: UID, rows: int = 96, columns: int = 96) -> str:
    """Why an image with this compressed frame cannot be read."""
    image = stacks.coronal(1, 4, 4)[0]
    image.Rows, image.Columns = rows, columns
    image.PixelData = encapsulate([stream])
    image["PixelData"].is_undefined_length = True
    image.file_meta.TransferSyntaxUID = syntax
    with pytest.raises(Unsuitable) as unsuitable:
        pixels.frames(image, 1, rows, columns)
    assert unsuitable.value.code is ReasonCode.UNSUPPORTED_PIXEL_DATA
    return unsuitable.value.text


def ending_inside(tag: int) -> bytes:
    """A sound image, and behind its pixels a sequence that does not end."""
    source = phantom_series()["phantom ExplicitVRLittleEndian"][0]
    coding = Coding()
    open_item = coding.tag(ITEM) + coding.number(UNDEFINED, 4)
    tail = Element(tag, b"SQ", open_item, claims=UNDEFINED).encoded(coding)
    return as_file(source.data + tail, source.syntax, source.sop_class, source.sop_instance)


def test_an_image_whose_last_sequence_does_not_end_keeps_its_identity_and_its_pixels() -> None:
    """Pydicom returned an empty data set: the report went to a study nobody knows."""
    data = ending_inside(0xFFFCFFFC)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(data)
    assert image.StudyInstanceUID == read_header(data).study_instance_uid
    assert pixels.frames(image, 1, image.Rows, image.Columns)[0].shape == (96, 96)


def test_a_series_cut_inside_a_sequence_is_reported_to_its_own_study() -> None:
    (source,) = phantom_series()["enhanced JPEG2000Lossless"]
    whole = as_file(source.data, source.syntax, source.sop_class, source.sop_instance)
    parts = source.parts()
    before = sum(
        len(each.encoded(parts.coding)) for each in parts.elements if each.tag < 0x52009230
    )
    cut = whole[: len(whole) - len(source.data) + before + 600]
    read_header(cut)
    assert analysing.analysed([cut]) == "mixed_geometry"


def test_a_panic_of_the_rle_decoder_is_pixel_data_that_cannot_be_decoded() -> None:
    """It is no Exception: it ended the worker's process, again at each attempt."""
    source = phantom_series()["phantom RLELossless"][0]
    segment = bytes((0x81, 0)) * 200
    head = struct.pack("<16L", 2, 64, 64 + len(segment), *([0] * 13))
    assert source.syntax == RLELossless
    assert "PanicException" in refused(head + segment * 2, RLELossless)


@pytest.mark.parametrize(
    ("components", "tile"), ((16384, 0), (3, 0), (1, 1)), ids=("many", "colour", "tiles")
)
def test_a_stream_that_claims_components_or_tiles_is_not_decoded(
    components: int, tile: int
) -> None:
    """Of the right size, and yet gigabytes: the process was killed for its memory."""
    text = refused(_codestream(96, 96, components, tile), JPEG2000Lossless)
    assert f"{components} components" in text


@pytest.mark.parametrize(
    "stream", (b"\x89PNG\r\n\x1a\n" + bytes(80), bytes(80), b"\xff\xd8\xff\xd9")
)
@pytest.mark.parametrize("syntax", (JPEG2000Lossless, JPEGBaseline8Bit))
def test_a_stream_without_a_size_is_not_given_to_a_decoder(stream: bytes, syntax: UID) -> None:
    assert "no " + syntax.name in refused(stream, syntax)


@pytest.mark.parametrize("bits", (0, 64))
def test_pixels_of_other_than_1_to_32_bits_are_not_decoded(bits: int) -> None:
    image = stacks.coronal(1)[0]
    image.BitsAllocated = bits
    with pytest.raises(Unsuitable, match="bits allocated"):
        pixels.check_grey(image)


def test_a_series_larger_than_a_worker_can_hold_is_not_read() -> None:
    """1.8 MB of RLE became 2.2 GB."""
    images = stacks.coronal(41)
    for image in images:
        image.Rows = image.Columns = 1024
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with pytest.raises(Unsuitable, match="voxels are claimed"):
        series.assemble(images)


def test_what_stands_in_place_of_a_uid_is_not_repeated() -> None:
    """Bytes that slipped put the patient's name there, and the refusal is logged."""
    source = phantom_series()["phantom ExplicitVRLittleEndian"][0]
    parts = source.parts()
    parts.put(0x0020000E, b"UI", b"1.2.3Doe^Jane")
    data = as_file(parts.encoded(), source.syntax, source.sop_class, source.sop_instance)
    with pytest.raises(Unreadable, match=r"^Series Instance UID \(0020,000E\) is not a UID$"):
        read_header(data)
