"""From images to a volume: order, geometry, protocol and pixels (PS3.3 C.7.6.2, C.7.6.16)."""

from __future__ import annotations

import copy
import csv
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import gdcm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from scipy.spatial.transform import Rotation

from hipscore import pixels, series
from hipscore.domain import MIN_SLICES, ReasonCode, Unsuitable, Volume
from tests import real_scans, stacks

pytestmark = pytest.mark.computes


def reason(images: Sequence[Dataset]) -> tuple[str, str]:
    """Why these images are no volume: code and text."""
    with pytest.raises(Unsuitable) as caught:
        series.assemble(images)
    return caught.value.code.value, caught.value.text


def assert_true_to_place(volume: Volume) -> None:
    """Every voxel holds the value of its place, and the slices run to the patient's back."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.grid.shape), indexing="ij"), axis=-1)
    mm = volume.grid.to_mm(index.astype(np.float64))
    assert np.abs(volume.voxels - stacks.value_at(mm)).max() <= 1
    depth = mm[:, 0, 0] @ stacks.normal_of([*volume.grid.affine[:3, 2], *volume.grid.affine[:3, 1]])
    assert (np.diff(depth) > 0).all()


# --- order and geometry ---------------------------------------------------------------------


def test_a_volume_says_where_every_voxel_and_slice_comes_from() -> None:
    found = series.assemble(stacks.coronal())
    volume = found.volume
    assert volume.voxels.shape == volume.grid.shape == (8, 12, 10)
    assert volume.voxels.dtype == np.float32
    assert not volume.voxels.flags.writeable
    assert volume.grid.spacing_mm == pytest.approx((4.0, 1.25, 1.5))
    assert_true_to_place(volume)
    assert [source.instance_number for source in volume.sources] == list(range(1, 9))
    for image, source in zip(found.images, volume.sources, strict=True):
        assert source.sop_instance_uid == image.SOPInstanceUID
        assert source.sop_class_uid == image.SOPClassUID
        assert source.frame_number is None


@given(order=st.permutations(range(8)))
def test_the_order_of_the_images_does_not_matter(order: list[int]) -> None:
    images = stacks.coronal()
    found = series.assemble([images[index] for index in order])
    assert_true_to_place(found.volume)
    assert [image.InstanceNumber for image in found.images] == list(range(1, 9))


#: the eight ways a coronal picture can be stored: row and column direction, LPS
STORED = [
    (*along, *down)
    for first, second in (((1, 0, 0), (0, 0, 1)), ((0, 0, 1), (1, 0, 0)))
    for sign in (1.0, -1.0)
    for other in (1.0, -1.0)
    for along, down in [(tuple(sign * v for v in first), tuple(other * v for v in second))]
]


@given(
    stored=st.sampled_from(STORED),
    angles=st.tuples(*[st.floats(-20, 20)] * 3),
    backwards=st.booleans(),
)
def test_flipped_transposed_and_tilted_stacks_keep_their_place(
    stored: tuple[float, ...], angles: tuple[float, float, float], backwards: bool
) -> None:
    turn = Rotation.from_euler("zyx", (angles[0], angles[1], angles[2]), degrees=True).as_matrix()
    orientation = (*(turn @ stored[:3]), *(turn @ stored[3:]))
    mm = stacks.places(8, 12, 10, orientation=orientation)
    images = stacks.series_of(mm, orientation=orientation)
    assert_true_to_place(series.assemble(images[::-1] if backwards else images).volume)


@given(tilt=st.floats(0, 90), about=st.sampled_from(["x", "z"]))
def test_only_coronal_slices_are_read(tilt: float, about: str) -> None:
    turn = Rotation.from_euler(about, tilt, degrees=True).as_matrix()
    orientation = (*(turn @ stacks.CORONAL[:3]), *(turn @ stacks.CORONAL[3:]))
    mm = stacks.places(6, 4, 4, orientation=orientation, middle=(0, 0, 0))
    images = stacks.series_of(mm, orientation=orientation)
    if tilt < series.MAX_TILT_DEG - 0.01:
        assert_true_to_place(series.assemble(images).volume)
    elif tilt > series.MAX_TILT_DEG + 0.01:
        code, text = reason(images)
        assert code == "not_coronal"
        said = re.search(r"(\d+)°", text)
        assert said is not None
        assert abs(float(said[1]) - tilt) < 0.51  # a half may be rounded either way


def test_axial_and_sagittal_slices_are_not_coronal() -> None:
    for orientation in ((1.0, 0, 0, 0, 1.0, 0), (0, 1.0, 0, 0, 0, -1.0)):
        mm = stacks.places(6, 4, 4, orientation=orientation, middle=(0, 0, 0))
        assert reason(stacks.series_of(mm, orientation=orientation))[0] == "not_coronal"


def test_cosines_of_few_digits_still_give_a_grid_of_true_sizes() -> None:
    images = stacks.coronal()
    for image in images:
        image.ImageOrientationPatient = [0.996, 0, 0.087, 0.084, 0, -0.997]
    grid = series.assemble(images).volume.grid
    assert grid.spacing_mm[1:] == pytest.approx((1.25, 1.5), abs=1e-12)
    assert grid.affine[:3, 1] @ grid.affine[:3, 2] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("gone", "text"),
    (
        ((3,), "1 of 8 slices"),
        ((3, 4), "2 of 8 slices"),
        ((2, 5), "2 of 8 slices"),
        ((1, 3, 5), "3 of 8 slices"),
    ),
)
def test_a_hole_in_the_stack_is_missing_slices(gone: tuple[int, ...], text: str) -> None:
    images = [image for index, image in enumerate(stacks.coronal()) if index not in gone]
    code, words = reason(images)
    assert code == "missing_slices"
    assert text in words


def test_repeated_positions_are_mixed_geometry() -> None:
    images = stacks.coronal()
    again = copy.deepcopy(images[3])
    again.SOPInstanceUID = "1.2.3.99"
    assert reason([*images, again])[0] == "mixed_geometry"
    twice = [*images, *copy.deepcopy(images)]
    code, text = reason(twice)
    assert code == "mixed_geometry"
    assert "same position" in text


def _shift(by: tuple[float, float, float], which: int) -> Callable[[list[Dataset]], None]:
    def change(images: list[Dataset]) -> None:
        moved = np.array(images[which].ImagePositionPatient, dtype=float) + by
        images[which].ImagePositionPatient = list(moved)

    return change


def _set(keyword: str, value: object, which: int = 3) -> Callable[[list[Dataset]], None]:
    def change(images: list[Dataset]) -> None:
        setattr(images[which], keyword, value)

    return change


def _shear(images: list[Dataset]) -> None:
    for number, image in enumerate(images):
        image.ImagePositionPatient[0] += 2.0 * number


def _drop(keyword: str) -> Callable[[list[Dataset]], None]:
    def change(images: list[Dataset]) -> None:
        del images[3][keyword]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    (
        (_shift((0, 1.5, 0), 3), "slice distances vary"),
        (_shift((2.0, 0, 0), 3), "off the line"),
        (_shear, "stacked at 27° from their normal"),
        (_set("ImageOrientationPatient", [-1, 0, 0, 0, 0, -1]), "different orientation"),
        (_set("ImageOrientationPatient", [1, 0, 0, 0, 0.2, -1]), "orthogonal unit"),
        (_set("ImageOrientationPatient", [1, 0, 0, 0.1, 0, -0.995]), "orthogonal unit"),
        (_set("ImageOrientationPatient", [1, 0, 0]), "orthogonal unit"),
        (_set("ImagePositionPatient", [1, 0]), "image position"),
        (_set("ImagePositionPatient", [1, 0, "1e30"]), "image position"),
        (_set("PixelSpacing", [1.25, 1.6]), "pixel spacings"),
        (_set("PixelSpacing", [0, 1.5]), "pixel spacing 0\\1.5 mm"),
        (_set("PixelSpacing", [1.5]), "pixel spacing 1.5 mm"),
        (_set("PixelSpacing", [1.5, 400]), "pixel spacing 1.5\\400 mm"),
        (_set("FrameOfReferenceUID", "1.2.3"), "frames of reference"),
        (_set("Rows", 14), "different sizes"),
        (_drop("PixelSpacing"), "pixel spacing (none)"),
        (_drop("ImagePositionPatient"), "image position (none)"),
        (_drop("ImageOrientationPatient"), "image orientation (none)"),
    ),
)
def test_what_is_no_regular_stack_is_mixed_geometry(
    change: Callable[[list[Dataset]], None], words: str
) -> None:
    images = stacks.coronal()
    change(images)
    code, text = reason(images)
    assert code == "mixed_geometry"
    assert words in text


def test_too_few_slices() -> None:
    code, text = reason(stacks.coronal(MIN_SLICES - 1))
    assert code == "too_few_slices"
    assert text == "4 slices, 5 are needed"
    assert series.assemble(stacks.coronal(MIN_SLICES)).volume.grid.shape[0] == MIN_SLICES
    assert reason([])[0] == "too_few_slices"


def test_slices_too_far_apart_are_too_few() -> None:
    images = stacks.series_of(stacks.places(9, 4, 4, step_mm=16.0))
    assert reason(images) == (
        "too_few_slices",
        "slices 16.0 mm apart cannot show 5 sections of a femoral head",
    )


@pytest.mark.parametrize("number", (None, "", "garbage"))
def test_an_unnumbered_instance_is_numbered_from_the_front(number: str | None) -> None:
    images = stacks.coronal()
    if number is None:
        del images[3].InstanceNumber
    else:
        _raw(images[3], "InstanceNumber", number.encode(), "IS")
    assert series.assemble(images).volume.sources[3].instance_number == 4


# --- what is not an MR image ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    (
        ("Modality", "CT", "modality is CT"),
        ("Modality", None, "modality is not given"),
        ("SOPClassUID", CTImageStorage, "SOP class is CT Image Storage"),
        ("SOPClassUID", SecondaryCaptureImageStorage, "Secondary Capture"),
        ("SOPClassUID", None, "SOP class is not given"),
        ("SOPInstanceUID", None, "no valid SOP Instance UID"),
        ("SOPInstanceUID", ["1.2", "1.3"], "no valid SOP Instance UID"),
    ),
)
def test_only_mr_images_are_read(keyword: str, value: object, words: str) -> None:
    images = stacks.coronal()
    setattr(images[5], keyword, value)
    code, text = reason(images)
    assert code == "not_mr"
    assert words in text


@pytest.mark.parametrize("value", (b"garbage", b"\xff\xfe", b"1." * 40))
def test_an_image_needs_a_uid_to_be_referred_to(value: bytes) -> None:
    images = stacks.coronal()
    _raw(images[5], "SOPInstanceUID", value, "UI")
    assert reason(images)[0] == "not_mr"


# --- fat suppression ------------------------------------------------------------------------


def _bare(**attributes: object) -> list[Dataset]:
    images = stacks.coronal()
    for image in images:
        del image.InversionTime
        for keyword, value in attributes.items():
            setattr(image, keyword, value)
    return images


@pytest.mark.parametrize(
    "attributes",
    (
        {"InversionTime": "150"},
        {"InversionTime": "220"},
        {"ScanOptions": "FS"},
        {"ScanOptions": ["SAT_GEMS", "FS"]},
        {"SpectrallySelectedSuppression": "FAT"},
        {"AcquisitionContrast": "STIR"},
        {"ImageType": ["DERIVED", "PRIMARY", "DIXON", "WATER"]},
        {"SeriesDescription": "COR STIR HIPS"},
        {"SeriesDescription": "t2_tirm_cor_p2"},
        {"SeriesDescription": "PDFS cor"},
        {"SeriesDescription": "T2 fat-suppressed cor"},
        {"SeriesDescription": "T2W_SPAIR"},
        {"SeriesDescription": "t2_tse_dixon_cor_W"},
        {"ProtocolName": "Cor T2 FatSat"},
        {"SequenceName": "*tir2d1_15", "ProtocolName": "stir"},
        {"PulseSequenceName": "TSE_IR"},
    ),
    ids=str,
)
def test_evidence_of_fat_suppression(attributes: dict[str, object]) -> None:
    series.assemble(_bare(**attributes))


@pytest.mark.parametrize(
    "attributes",
    (
        {},
        {"InversionTime": "0"},
        {"InversionTime": "2200"},
        {"InversionTime": "0.15"},
        {"ScanOptions": ["FSS_GEMS", "FAST_GEMS"]},  # a frequency direction, not fat saturation
        {"SpectrallySelectedSuppression": "NONE"},
        {"SeriesDescription": "T1 TSE cor"},
        {"SeriesDescription": "FRFSE-XL T2"},
        {"SeriesDescription": "T2 cor without fat sat"},
        {"SeriesDescription": "pd_tse_nonFS"},
        {"SeriesDescription": "history of surgery"},
        {"SeriesDescription": "t2_tse_dixon_cor_F", "ImageType": ["DERIVED", "PRIMARY", "FAT"]},
        {"SeriesDescription": "stir", "ImageType": ["ORIGINAL", "PRIMARY", "IN_PHASE"]},
    ),
    ids=str,
)
def test_without_evidence_the_series_is_not_fat_suppressed(attributes: dict[str, object]) -> None:
    images = _bare(**attributes)
    assert reason(images)[0] == "not_fat_suppressed"
    series.assemble(images, protocol_check=False)


def test_one_image_of_another_protocol_spoils_the_series_in_any_order() -> None:
    images = stacks.coronal()
    del images[0].InversionTime
    assert reason(images)[0] == "not_fat_suppressed"
    assert reason(images[::-1])[0] == "not_fat_suppressed"


@pytest.mark.parametrize(
    ("where", "keyword", "value"),
    (
        ("MRModifierSequence", "SpectrallySelectedExcitation", "WATER"),
        ("MRImageFrameTypeSequence", "AcquisitionContrast", "STIR"),
        ("MRImageFrameTypeSequence", "FrameType", ["DERIVED", "PRIMARY", "DIXON", "WATER"]),
        ("MRModifierSequence", "InversionTimes", [3000.0, 160.0]),
    ),
)
def test_evidence_of_fat_suppression_in_functional_groups(
    where: str, keyword: str, value: object
) -> None:
    for per_frame in (False, True):
        image = stacks.multi_frame()
        shared = image.SharedFunctionalGroupsSequence[0]
        del shared.MRModifierSequence
        assert reason([image])[0] == "not_fat_suppressed"
        item = Dataset()
        setattr(item, keyword, value)
        for functional in image.PerFrameFunctionalGroupsSequence if per_frame else [shared]:
            setattr(functional, where, [item])
        series.assemble([image])


# --- rescale --------------------------------------------------------------------------------


def test_every_slice_is_rescaled_by_its_own_slope_and_intercept() -> None:
    images = stacks.coronal()
    plain = series.assemble(images).volume.voxels
    for number, image in enumerate(images):
        image.RescaleSlope, image.RescaleIntercept = f"{1 + number / 8}", f"{-10 * number}"
    scaled = series.assemble(images[::-1]).volume.voxels
    for number in range(8):
        np.testing.assert_allclose(
            scaled[number], plain[number] * (1 + number / 8) - 10 * number, rtol=1e-6
        )


def test_an_empty_rescale_is_none() -> None:
    images = stacks.coronal()
    images[2].RescaleSlope, images[2].RescaleIntercept = None, None
    assert_true_to_place(series.assemble(images).volume)


@pytest.mark.parametrize(
    ("keyword", "value"),
    (
        ("RescaleSlope", b"0"),
        ("RescaleSlope", b"-1"),
        ("RescaleSlope", b"one"),
        ("RescaleSlope", b"1\\2"),
        ("RescaleSlope", b"nan"),
        ("RescaleSlope", b"1e30"),
        ("RescaleIntercept", b"inf"),
        ("RescaleIntercept", b"-1e20"),
    ),
)
def test_a_rescale_without_meaning_is_unsupported_pixel_data(keyword: str, value: bytes) -> None:
    images = stacks.coronal()
    _raw(images[2], keyword, value, "DS")
    assert reason(images)[0] == "unsupported_pixel_data"


def test_signed_pixels_keep_their_sign() -> None:
    images = stacks.coronal()
    for image in images:
        stored = np.frombuffer(image.PixelData, "<u2").astype("<i2") - 3000
        image.PixelRepresentation, image.BitsStored, image.HighBit = 1, 16, 15
        image.PixelData = stored.astype("<i2").tobytes()
        image.RescaleIntercept = "3000"
    assert_true_to_place(series.assemble(images).volume)


def test_overlay_bits_above_the_stored_bits_are_no_signal() -> None:
    images = stacks.coronal()
    for image in images:
        stored = np.frombuffer(image.PixelData, "<u2") | 0x8000
        image.PixelData = stored.astype("<u2").tobytes()
    assert_true_to_place(series.assemble(images).volume)


# --- Enhanced MR ----------------------------------------------------------------------------


def test_a_multi_frame_image_is_one_volume() -> None:
    image = stacks.multi_frame()
    found = series.assemble([image])
    assert found.images == (image,)
    assert_true_to_place(found.volume)
    assert [source.frame_number for source in found.volume.sources] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert {source.sop_instance_uid for source in found.volume.sources} == {image.SOPInstanceUID}
    assert series.assemble([image]).volume.sources[0].instance_number == 8


def test_per_frame_functional_groups_overrule_the_shared_ones() -> None:
    image = stacks.multi_frame()
    shared = image.SharedFunctionalGroupsSequence[0]
    for number, own in enumerate(image.PerFrameFunctionalGroupsSequence):
        own.PixelMeasuresSequence = copy.deepcopy(shared.PixelMeasuresSequence)
        own.PlaneOrientationSequence = copy.deepcopy(shared.PlaneOrientationSequence)
        rescale = Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = "2", str(number)
        own.PixelValueTransformationSequence = [rescale]
    shared.PixelMeasuresSequence[0].PixelSpacing = [9, 9]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    volume = series.assemble([image]).volume
    expected = series.assemble([stacks.multi_frame()]).volume
    np.testing.assert_allclose(volume.grid.affine, expected.grid.affine)
    numbers = np.arange(8)[::-1, None, None]
    np.testing.assert_allclose(volume.voxels, 2 * expected.voxels + numbers)


def test_multi_frame_and_single_frame_give_the_same_volume() -> None:
    one, many = series.assemble([stacks.multi_frame()]), series.assemble(stacks.coronal())
    np.testing.assert_array_equal(one.volume.voxels, many.volume.voxels)
    np.testing.assert_allclose(one.volume.grid.affine, many.volume.grid.affine)


def test_multi_frame_images_do_not_mix() -> None:
    image = stacks.multi_frame()
    assert reason([image, image])[0] == "mixed_geometry"
    assert reason([image, *stacks.coronal()])[0] == "mixed_geometry"


def test_functional_groups_must_match_the_frames() -> None:
    image = stacks.multi_frame()
    image.NumberOfFrames = 9
    assert reason([image]) == ("mixed_geometry", "8 functional groups for 9 frames")
    del image.PerFrameFunctionalGroupsSequence
    assert reason([image])[0] == "mixed_geometry"


def test_a_single_frame_class_with_frames_is_unsupported() -> None:
    images = stacks.coronal()
    images[2].NumberOfFrames = 3
    assert reason(images)[0] == "unsupported_pixel_data"
    images[2].NumberOfFrames = 1
    series.assemble(images)


# --- pixel data -----------------------------------------------------------------------------

_BY_GDCM = {
    JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
    JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
}
COMPRESSED = (RLELossless, JPEGLSLossless, *_BY_GDCM)


def compressed(image: Dataset, syntax: UID, folder: Path) -> Dataset:
    """The image in another transfer syntax."""
    image = copy.deepcopy(image)
    if syntax not in _BY_GDCM:
        image.compress(syntax, generate_instance_uid=False)
        return image
    path = str(folder / "image.dcm")
    image.save_as(path, enforce_file_format=True)
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(path)
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(_BY_GDCM[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(path)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return dcmread(path)


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda uid: uid.keyword)
def test_lossless_transfer_syntaxes_give_the_same_voxels(syntax: UID, tmp_path: Path) -> None:
    plain = stacks.series_of(stacks.places(5, 32, 24))
    images = [compressed(image, syntax, tmp_path) for image in plain]
    assert images[0].file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(
        series.assemble(images).volume.voxels, series.assemble(plain).volume.voxels
    )


@pytest.mark.parametrize("syntax", (RLELossless, JPEGLSLossless), ids=lambda uid: uid.keyword)
def test_compressed_multi_frame(syntax: UID, tmp_path: Path) -> None:
    image = compressed(stacks.multi_frame(), syntax, tmp_path)
    assert_true_to_place(series.assemble([image]).volume)


@pytest.mark.parametrize(
    ("syntax", "share"),
    (
        *((syntax, share) for syntax in (RLELossless, *_BY_GDCM) for share in (0.9, 0.3)),
        (JPEGLSLossless, 0.5),
    ),
)
def test_a_compressed_frame_cut_short_is_unsupported_pixel_data(
    syntax: UID, share: float, tmp_path: Path
) -> None:
    images = stacks.series_of(stacks.places(5, 32, 24))
    images[2] = compressed(images[2], syntax, tmp_path)
    (frame,) = generate_frames(images[2].PixelData, number_of_frames=1)
    images[2].PixelData = encapsulate([frame[: int(len(frame) * share)]])
    code, text = reason(images)
    assert code == "unsupported_pixel_data"
    assert syntax.name in text


@pytest.mark.parametrize("kept", (0, 1, 100, -2, -1))
def test_uncompressed_pixels_cut_short_are_unsupported_pixel_data(kept: int) -> None:
    images = stacks.coronal()
    images[4].PixelData = images[4].PixelData[:kept]
    assert reason(images)[0] == "unsupported_pixel_data"
    image = stacks.multi_frame()
    image.PixelData = image.PixelData[:kept]
    assert reason([image])[0] == "unsupported_pixel_data"


def test_a_multi_frame_stream_with_too_few_frames_is_unsupported_pixel_data(
    tmp_path: Path,
) -> None:
    image = compressed(stacks.multi_frame(), RLELossless, tmp_path)
    stored = list(generate_frames(image.PixelData, number_of_frames=8))
    image.PixelData = encapsulate(stored[:6])
    assert reason([image])[0] == "unsupported_pixel_data"


def test_bytes_behind_the_pixels_do_no_harm() -> None:
    images = stacks.coronal()
    for image in images:
        image.PixelData += bytes(6)
    assert_true_to_place(series.assemble(images).volume)


@pytest.mark.parametrize(
    ("keyword", "value"),
    (
        ("PhotometricInterpretation", "MONOCHROME1"),
        ("PhotometricInterpretation", "RGB"),
        ("PhotometricInterpretation", None),
        ("SamplesPerPixel", 3),
        ("BitsAllocated", 12),
        ("BitsAllocated", None),
        ("PixelData", None),
    ),
)
def test_what_is_no_plane_of_grey_values_is_unsupported(keyword: str, value: object) -> None:
    images = stacks.coronal()
    setattr(images[1], keyword, value)
    assert reason(images)[0] == "unsupported_pixel_data"


def test_without_size_or_transfer_syntax_the_pixels_are_unsupported() -> None:
    images = stacks.coronal()
    for image in images:
        image.Rows = None
    assert reason(images) == ("unsupported_pixel_data", "rows or columns are missing")
    images = stacks.coronal()
    for image in images:
        del image.file_meta
    code, text = reason(images)
    assert code == "unsupported_pixel_data"
    assert "unknown" in text


def test_a_claim_of_absurd_size_is_not_believed() -> None:
    images = stacks.coronal()
    for image in images:
        image.Rows = image.Columns = 65535
    code, text = reason(images)
    assert code == "unsupported_pixel_data"
    assert "8×65535×65535 voxels" in text


#: a JPEG 2000 codestream's SIZ and a JPEG-LS frame header that claim 60000 × 60000 pixels
_SIZ = (
    b"\xff\x4f\xff\x51\x00\x29\x00\x00"
    + b"".join(n.to_bytes(4, "big") for n in (60000, 60000, 0, 0, 60000, 60000, 0, 0))
    + b"\x00\x01\x0f\x01\x01"
)
_BOXED = b"\x00\x00\x00\x0cjP  \x0d\x0a\x87\x0a" + bytes(40) + _SIZ
_SOF55 = (
    b"\xff\xd8\xff\xe8\x00\x04\x00\x00\xff"
    b"\xff\xf7\x00\x0b\x0c\xea\x60\xea\x60\x01\x01\x11\x00"
)  # fmt: skip


@pytest.mark.parametrize(
    ("syntax", "stream"),
    ((JPEG2000Lossless, _SIZ), (JPEG2000Lossless, _BOXED), (JPEGLSLossless, _SOF55)),
)
def test_a_stream_larger_than_its_image_is_never_decoded(
    syntax: UID, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(image: Dataset) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(pixels, "iter_pixels", decode)
    images = stacks.coronal()
    for image in images:
        image.file_meta.TransferSyntaxUID = syntax
        image.PixelData = encapsulate([stream])
        image["PixelData"].is_undefined_length = True
    code, text = reason(images)
    assert code == "unsupported_pixel_data"
    assert "60000×60000" in text


@pytest.mark.parametrize("syntax", COMPRESSED[1:], ids=lambda uid: uid.keyword)
def test_the_size_in_a_stream_is_read_as_it_was_written(syntax: UID, tmp_path: Path) -> None:
    image = compressed(stacks.series_of(stacks.places(1, 32, 24))[0], syntax, tmp_path)
    (stream,) = generate_frames(image.PixelData, number_of_frames=1)
    assert pixels.claimed(stream) == (32, 24, 1, 1)


@given(
    stream=st.binary(max_size=60), head=st.sampled_from([b"", b"\xff\xd8", _SIZ[:6], _BOXED[:8]])
)
def test_any_stream_claims_something_or_nothing(stream: bytes, head: bytes) -> None:
    size = pixels.claimed(head + stream)
    assert size is None or size.tiles >= 0


# --- headers in disorder --------------------------------------------------------------------


def _raw(dataset: Dataset, keyword: str, value: bytes, vr: str) -> None:
    """Put an element as it comes from a file, not yet converted."""
    tag = Tag(keyword)
    dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True, True)


def _everywhere(dataset: Dataset) -> list[tuple[Dataset, str]]:
    """Every element that has a keyword, nested ones too, with the data set that holds it."""
    found = []
    for element in dataset:
        found.append((dataset, element.keyword))
        if element.VR == "SQ":
            for item in element.value:
                found += _everywhere(item)
    return found


#: bytes that a number, a text or a sequence may be found to hold
_DISORDER = st.one_of(
    st.binary(max_size=24),
    st.sampled_from(
        [b"", b"1", b"-1", b"0", b"nan", b"1e400", b"abc", b"1\\2\\3", b"\xff\xff", b"\\", b"1.5"]
    ),
)
_VRS = st.sampled_from(["US", "IS", "DS", "FD", "CS", "LO", "UI", "SQ", "OW", "AT", "UN", "PN"])


@given(data=st.data(), enhanced=st.booleans())
def test_whatever_a_header_says_the_answer_is_a_volume_or_a_reason(
    data: st.DataObject, enhanced: bool
) -> None:
    images = [stacks.multi_frame(5, 4, 4)] if enhanced else stacks.coronal(5, 4, 4)
    for holder, keyword in data.draw(
        st.lists(st.sampled_from(_everywhere(images[-1])), min_size=1, max_size=3)
    ):
        if data.draw(st.booleans()):
            vr = data.draw(st.one_of(st.just(dictionary_VR(keyword)), _VRS))
            _raw(holder, keyword, data.draw(_DISORDER), vr)
        else:
            holder.pop(keyword, None)
    answer = _answer(images)
    if isinstance(answer, Unsuitable):
        assert answer.code in ReasonCode
        assert answer.text
        assert "\n" not in answer.text
    else:
        assert np.isfinite(answer.voxels).all()
        assert np.isfinite(answer.grid.affine).all()


def _answer(images: Sequence[Dataset]) -> Volume | Unsuitable:
    try:
        return series.assemble(images).volume
    except Unsuitable as unsuitable:
        return unsuitable


# --- real headers and real scans ------------------------------------------------------------


@pytest.mark.real_scans(real_scans.VENDORS)
@pytest.mark.parametrize(
    ("name", "code"),
    (
        ("d2n_enhanced_philips_enhanced_anatomical_001.dcm", "not_coronal"),
        ("d2n_enhanced_siemens_multiframe_anatomical_001.dcm", "not_coronal"),
        ("failing_slicecount_001", "not_coronal"),
        ("failing_sliceorientation_001", "mixed_geometry"),
        ("ge_anatomical_001", "not_coronal"),
        ("generic_compressed_j2k_001", "not_coronal"),
        ("generic_compressed_jpeg_001", "not_coronal"),
        ("generic_compressed_rle_001", "not_coronal"),
        ("philips_anatomical_001", "not_fat_suppressed"),
        ("siemens_anatomical_001", "not_coronal"),
    ),
)
def test_series_of_other_kinds_are_declined_for_what_they_are(name: str, code: str) -> None:
    path = real_scans.VENDORS / name
    files = sorted(path.glob("*.dcm")) if path.is_dir() else [path]
    assert reason([dcmread(file) for file in files])[0] == code


@pytest.mark.real_scans(real_scans.VENDORS)
def test_every_vendors_pixels_are_decoded() -> None:
    decoded: dict[str, list[bytes]] = {}
    for file in sorted(real_scans.VENDORS.rglob("*.dcm")):
        image = dcmread(file)
        count = int(image.get("NumberOfFrames", 1))
        stored = pixels.frames(image, count, image.Rows, image.Columns)
        assert [frame.shape for frame in stored] == [(image.Rows, image.Columns)] * count
        decoded.setdefault(file.parent.name, []).append(stored[0].tobytes())
    # the same scan in three transfer syntaxes
    assert decoded["generic_compressed_j2k_001"] == decoded["generic_compressed_rle_001"]
    assert decoded["generic_compressed_jpeg_001"] == decoded["generic_compressed_rle_001"]


@pytest.mark.real_scans(real_scans.PELVES)
@pytest.mark.parametrize("name", ("series_03", "series_15"))
def test_places_in_a_real_pelvis_are_where_they_were_measured(name: str, tmp_path: Path) -> None:
    home = real_scans.PELVES
    with tarfile.open(home / f"{name}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    images = [dcmread(path) for path in tmp_path.rglob("*.dcm")]
    assert reason(images)[0] == "not_fat_suppressed"
    volume = series.assemble(images, protocol_check=False).volume
    numbers = [source.instance_number for source in volume.sources]
    with (home / "femoral_heads.csv").open(encoding="utf-8") as table:
        heads = [row for row in csv.DictReader(table) if row["series"] == name]
    assert len(heads) == 2
    for head in heads:
        slice_index = float(head["slice_index"])
        if numbers[0] > numbers[-1]:
            slice_index = len(numbers) - 1 - slice_index
        mm = volume.grid.to_mm([slice_index, float(head["row"]), float(head["column"])])
        np.testing.assert_allclose(mm, [float(head[f"{axis}_mm"]) for axis in "xyz"], atol=0.1)
