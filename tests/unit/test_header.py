"""The header of a received object: what is read, what is refused, and nothing else."""

from __future__ import annotations

import hashlib
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import config
from pydicom.dataset import Dataset

from hipscore import phantom
from hipscore.header import Unreadable, is_uid, read_header


def encode(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture
def image() -> Dataset:
    made = phantom.synthesise(seed=5, rows=32, slices=3, supersampling=1)
    return phantom.to_datasets(made)[1]


@pytest.fixture
def anything_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test write values that the standard does not allow."""
    monkeypatch.setattr(config.settings, "_writing_validation_mode", config.IGNORE)
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.IGNORE)


def test_reads_identity_and_geometry(image: Dataset) -> None:
    data = encode(image)
    header = read_header(data)
    assert header.study_instance_uid == image.StudyInstanceUID
    assert header.series_instance_uid == image.SeriesInstanceUID
    assert header.sop_instance_uid == image.SOPInstanceUID
    assert header.sop_class_uid == image.SOPClassUID
    assert header.transfer_syntax_uid == image.file_meta.TransferSyntaxUID
    assert header.sha256 == hashlib.sha256(data).hexdigest()
    assert header.size == len(data)
    assert header.instance_number == image.InstanceNumber
    assert header.number_of_frames == 1
    assert header.position_mm == tuple(image.ImagePositionPatient)
    assert header.orientation == tuple(image.ImageOrientationPatient)
    assert header.image_type == tuple(image.ImageType)


def test_counts_the_frames_of_an_enhanced_object() -> None:
    made = phantom.synthesise(seed=5, rows=32, slices=3, supersampling=1)
    (dataset,) = phantom.to_datasets(made, enhanced=True)
    header = read_header(encode(dataset))
    assert header.number_of_frames == 3
    assert header.position_mm is None


def test_does_not_need_the_pixels(image: Dataset) -> None:
    data = encode(image)
    whole = read_header(data)
    part = read_header(data[: len(data) - image.Rows * image.Columns])
    assert part.sop_instance_uid == whole.sop_instance_uid
    assert part.position_mm == whole.position_mm


@pytest.mark.parametrize(
    ("keyword", "value", "field"),
    (
        ("InstanceNumber", "99999999999", "instance_number"),
        ("ImagePositionPatient", ["1", "2"], "position_mm"),
        ("ImagePositionPatient", ["1", "2", "nan"], "position_mm"),
        ("ImagePositionPatient", ["1", "2", "1e999"], "position_mm"),
        ("ImageOrientationPatient", ["1", "0", "0"], "orientation"),
    ),
)
@pytest.mark.usefixtures("anything_goes")
def test_malformed_geometry_is_no_geometry(
    image: Dataset, keyword: str, value: object, field: str
) -> None:
    # written as text: pydicom's own number types would refuse these values
    element = image[keyword]
    element.VR = "LO"
    element.value = value
    assert getattr(read_header(encode(image)), field) is None


@pytest.mark.parametrize("keyword", ("StudyInstanceUID", "SeriesInstanceUID"))
def test_what_belongs_nowhere_is_unreadable(image: Dataset, keyword: str) -> None:
    delattr(image, keyword)
    with pytest.raises(Unreadable, match=r"Instance UID \(0020,000.\) is missing"):
        read_header(encode(image))


@pytest.mark.usefixtures("anything_goes")
@pytest.mark.parametrize("uid", ("1.2.x", "../../etc", "1" * 65, "1..2", "1.2\\1.3"))
def test_what_is_not_a_uid_is_unreadable(image: Dataset, uid: str) -> None:
    image["StudyInstanceUID"].VR = "LO"
    image["StudyInstanceUID"].value = uid.split("\\")
    with pytest.raises(Unreadable, match="is not a UID"):
        read_header(encode(image))


def test_a_uid_with_leading_zeros_is_taken_as_devices_send_it() -> None:
    assert is_uid("1.2.840.0001.5")
    assert not is_uid("")
    assert not is_uid("1.2\n")


@given(st.binary(max_size=2000))
def test_noise_is_unreadable_and_nothing_worse(noise: bytes) -> None:
    for data in (noise, bytes(128) + b"DICM" + noise):
        with pytest.raises(Unreadable):
            read_header(data)


@given(data=st.data())
def test_damage_is_survived(data: st.DataObject) -> None:
    good = bytearray(_GOOD)
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(132, 1200))] = data.draw(st.integers(0, 255))
    try:
        header = read_header(bytes(good))
    except Unreadable:
        return
    assert is_uid(header.study_instance_uid)
    assert is_uid(header.sop_instance_uid)


_GOOD = encode(
    phantom.to_datasets(phantom.synthesise(seed=5, rows=32, slices=1, supersampling=1))[0]
)
