"""A phantom as DICOM: MR Image Storage, one instance per slice, or one Enhanced MR.

Attributes follow PS3.3 A.4 (MR Image) and A.36 (Enhanced MR Image). Everything that
DICOM would have a clock or a counter for is derived from the phantom or an argument,
so that the same call gives the same bytes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage

from hipscore.domain import Side
from hipscore.phantom.enhanced import multi_frame
from hipscore.phantom.protocol import (
    BANDWIDTH_HZ,
    ECHO_MS,
    ECHO_TRAIN,
    FIELD_TESLA,
    FLIP_DEG,
    INVERSION_MS,
    PROTON_MHZ,
    REPETITION_MS,
    geometry,
    position,
    window,
)
from hipscore.phantom.study import Phantom, derive_uid

Order = Literal["forward", "reversed", "shuffled"]

_BITS_STORED = 12
_UNCOMPRESSED = frozenset({ExplicitVRLittleEndian, ImplicitVRLittleEndian})


def to_datasets(
    phantom: Phantom,
    *,
    enhanced: bool = False,
    study_uid: str | None = None,
    series_uid: str | None = None,
    frame_of_reference_uid: str | None = None,
    patient_name: str = "HIPSCORE^PHANTOM",
    patient_id: str | None = None,
    accession_number: str = "",
    study_date: str = "20240102",
    study_time: str = "120000",
    series_number: int = 3,
    series_description: str | None = None,
    fat_suppressed: bool = True,
    character_set: str = "ISO_IR 192",
    order: Order = "forward",
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
) -> list[Dataset]:
    """Write the phantom as DICOM data sets with complete file meta information.

    Parameters
    ----------
    phantom
        From :func:`~hipscore.phantom.synthesise`.
    enhanced
        One multi-frame Enhanced MR Image instead of one MR Image per slice.
    study_uid, series_uid, frame_of_reference_uid
        By default derived from the phantom, like the SOP Instance UIDs, which then are
        those in ``phantom.volume.sources``. With a ``series_uid`` they depend on it.
    patient_name, patient_id, accession_number, study_date, study_time
        Made up. ``patient_id`` defaults to ``HIPSCORE-`` and the seed.
    series_number, series_description
        The description defaults to ``COR STIR`` or its like for the plane.
    fat_suppressed
        False leaves out every sign of fat suppression, in the header only.
    character_set
        Specific Character Set (0008,0005).
    order
        ``forward``: instances numbered from the front; ``reversed``: from the back;
        ``shuffled``: numbered from the front, listed in an order drawn from the seed.
    transfer_syntax_uid
        Explicit or Implicit VR Little Endian, or a lossless compressed syntax that pydicom
        can encode (RLE, JPEG-LS, JPEG 2000).

    Returns
    -------
    list of Dataset
        One per slice in the order asked for, or a single Enhanced MR Image.
    """
    key = phantom.key
    common = Dataset()
    common.SpecificCharacterSet = character_set
    common.StudyInstanceUID = study_uid or derive_uid(key, "study")
    common.SeriesInstanceUID = series_uid or derive_uid(key, "series", enhanced)
    common.FrameOfReferenceUID = frame_of_reference_uid or derive_uid(key, "frame of reference")
    common.PatientName = patient_name
    common.PatientID = patient_id or f"HIPSCORE-{phantom.seed}"
    common.AccessionNumber = accession_number
    for moment in ("Study", "Series", "Acquisition", "Content"):
        setattr(common, f"{moment}Date", study_date)
        setattr(common, f"{moment}Time", study_time)
    common.SeriesNumber = series_number
    suppressed = "STIR" if fat_suppressed else "T2"
    prefix = "COR" if phantom.plane == "coronal" else "TRA"
    common.SeriesDescription = series_description or f"{prefix} {suppressed}"
    _describe(common, phantom)
    if enhanced:
        images = [multi_frame(phantom, common, fat_suppressed=fat_suppressed)]
    else:
        images = _single_frames(
            phantom,
            common,
            order=order,
            fat_suppressed=fat_suppressed,
            fresh=series_uid is not None,
        )
    return [_finished(image, transfer_syntax_uid) for image in images]


def _describe(common: Dataset, phantom: Phantom) -> None:
    """Patient, equipment and pixel attributes that all images share."""
    common.PatientBirthDate = ""
    common.PatientSex = "O"
    common.PatientAge = "045Y"
    common.PatientWeight = "75"
    common.StudyID = "1"
    common.StudyDescription = "Synthetic MRI"
    common.ReferringPhysicianName = ""
    common.Modality = "MR"
    common.PatientPosition = "HFS"
    common.PositionReferenceIndicator = ""
    common.Manufacturer = "hipscore"
    common.ManufacturerModelName = "phantom"
    common.DeviceSerialNumber = "0"
    common.SoftwareVersions = "1"
    common.InstitutionName = "SYNTHETIC"
    if phantom.anatomy == "brain":
        common.BodyPartExamined = "BRAIN"
    elif len(phantom.hips) == 1:
        common.BodyPartExamined = "HIP"
        common.Laterality = "R" if phantom.hips[0].side is Side.RIGHT else "L"
    else:
        common.BodyPartExamined = "PELVIS"
    common.BurnedInAnnotation = "NO"
    common.LossyImageCompression = "00"
    _, rows, columns = phantom.volume.grid.shape
    common.SamplesPerPixel = 1
    common.PhotometricInterpretation = "MONOCHROME2"
    common.Rows, common.Columns = rows, columns
    common.BitsAllocated, common.BitsStored, common.HighBit = 16, _BITS_STORED, _BITS_STORED - 1
    common.PixelRepresentation = 0


def _single_frames(
    phantom: Phantom, common: Dataset, *, order: Order, fat_suppressed: bool, fresh: bool
) -> list[Dataset]:
    count = phantom.volume.grid.shape[0]
    sequence = list(range(count))
    if order == "shuffled":
        sequence = [int(z) for z in np.random.default_rng(phantom.seed).permutation(count)]
    elif order == "reversed":
        sequence.reverse()
    images = []
    for z in sequence:
        image = _copy(common)
        number = count - z if order == "reversed" else z + 1
        image.SOPClassUID = MRImageStorage
        image.SOPInstanceUID = (
            derive_uid(phantom.key, str(common.SeriesInstanceUID), z)
            if fresh
            else phantom.volume.sources[z].sop_instance_uid
        )
        image.InstanceNumber = number
        _describe_slice(image, phantom, z, fat_suppressed=fat_suppressed)
        image.PixelData = phantom.volume.voxels[z].astype("<u2").tobytes()
        images.append(image)
    return images


def _copy(common: Dataset) -> Dataset:
    image = Dataset()
    image.update(common)
    return image


def _describe_slice(image: Dataset, phantom: Phantom, z: int, *, fat_suppressed: bool) -> None:
    """Image Plane, MR Image and VOI LUT modules of one slice (PS3.3 C.7.6.2, C.8.3.1)."""
    cosines, pixel_mm, step_mm = geometry(phantom)
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "IR" if fat_suppressed else "SE"]
    image.AcquisitionNumber = 1
    image.ImagesInAcquisition = phantom.volume.grid.shape[0]
    image.PatientOrientation = ["L", "F" if phantom.plane == "coronal" else "P"]
    image.ImagePositionPatient = position(phantom, z)
    image.ImageOrientationPatient = cosines
    image.PixelSpacing = pixel_mm
    image.SliceThickness = phantom.slice_mm
    image.SpacingBetweenSlices = step_mm
    normal = np.cross(cosines[:3], cosines[3:])
    image.SliceLocation = round(float(np.dot(normal, position(phantom, z))), 4)
    image.ScanningSequence = ["SE", "IR"] if fat_suppressed else "SE"
    image.SequenceVariant = "SK"
    image.ScanOptions = ""
    image.MRAcquisitionType = "2D"
    image.ProtocolName = image.SeriesDescription
    image.RepetitionTime, image.EchoTime = REPETITION_MS, ECHO_MS
    image.EchoTrainLength = ECHO_TRAIN
    if fat_suppressed:
        image.InversionTime = INVERSION_MS
    image.FlipAngle = FLIP_DEG
    image.MagneticFieldStrength = FIELD_TESLA
    image.ImagingFrequency = PROTON_MHZ
    image.ImagedNucleus = "1H"
    image.NumberOfAverages = 1
    image.PixelBandwidth = BANDWIDTH_HZ
    image.WindowCenter, image.WindowWidth = window(phantom)


def _finished(image: Dataset, transfer_syntax_uid: str) -> Dataset:
    """Add the file meta information (PS3.10 7.1) and compress if asked to."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = image.SOPClassUID
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(derive_uid("implementation"))
    meta.ImplementationVersionName = "HIPSCORE_PHANTOM"
    image.file_meta = meta
    image.preamble = bytes(128)
    image["PixelData"].VR = "OW"
    if transfer_syntax_uid in _UNCOMPRESSED:
        meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    else:
        image.compress(transfer_syntax_uid, generate_instance_uid=False)
    return image
