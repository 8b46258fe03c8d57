"""A phantom as one Enhanced MR Image (PS3.3 A.36.2)."""

from __future__ import annotations

from collections.abc import Mapping

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import EnhancedMRImageStorage

from hipscore.domain import Side
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

#: anatomic regions of CID 4
_REGIONS = {
    "hip": ("29836001", "Hip"),
    "pelvis": ("12921003", "Pelvis"),
    "brain": ("12738006", "Brain"),
}


def multi_frame(phantom: Phantom, common: Dataset, *, fat_suppressed: bool) -> Dataset:
    """One frame per slice, in the order of the volume (anterior first).

    ``common`` holds the attributes shared with the single-frame images; it is not changed.
    """
    image = Dataset()
    image.update(common)
    # said in the functional groups instead, and not allowed here
    for keyword in ("AcquisitionDate", "AcquisitionTime", "Laterality"):
        image.pop(keyword, None)
    moment = f"{common.StudyDate}{common.StudyTime}"
    image.SOPClassUID = EnhancedMRImageStorage
    image.SOPInstanceUID = derive_uid(phantom.key, str(common.SeriesInstanceUID), "enhanced")
    image.InstanceNumber = 1
    image.NumberOfFrames = phantom.volume.grid.shape[0]
    image.update(_acquisition(moment, fat_suppressed=fat_suppressed))
    image.update(_dimensions(phantom))
    image.SharedFunctionalGroupsSequence = [_shared(phantom, fat_suppressed=fat_suppressed)]
    image.PerFrameFunctionalGroupsSequence = [
        _frame(phantom, z, moment) for z in range(image.NumberOfFrames)
    ]
    image.PixelData = phantom.volume.voxels.astype("<u2").tobytes()
    return image


def _dataset(values: Mapping[str, object]) -> Dataset:
    """A data set from keywords; a mapping becomes a sequence of one item."""
    out = Dataset()
    for keyword, value in values.items():
        setattr(out, keyword, [_dataset(value)] if isinstance(value, Mapping) else value)
    return out


def _image_description(*, fat_suppressed: bool) -> dict[str, object]:
    """Enhanced MR image description macro (PS3.3 C.8.13.3.1)."""
    return {
        "PixelPresentation": "MONOCHROME",
        "VolumetricProperties": "VOLUME",
        "VolumeBasedCalculationTechnique": "NONE",
        "ComplexImageComponent": "MAGNITUDE",
        "AcquisitionContrast": "STIR" if fat_suppressed else "T2",
    }


def _image_type(*, fat_suppressed: bool) -> list[str]:
    return ["ORIGINAL", "PRIMARY", "STIR" if fat_suppressed else "T2", "NONE"]


def _acquisition(moment: str, *, fat_suppressed: bool) -> Dataset:
    """Enhanced MR Image and MR Pulse Sequence modules (PS3.3 C.8.13.1, C.8.13.4)."""
    return _dataset(
        {
            "ImageType": _image_type(fat_suppressed=fat_suppressed),
            **_image_description(fat_suppressed=fat_suppressed),
            "AcquisitionNumber": 1,
            "AcquisitionDateTime": moment,
            "AcquisitionDuration": 240.0,
            "ContentQualification": "RESEARCH",
            "ResonantNucleus": "1H",
            "KSpaceFiltering": "NONE",
            "MagneticFieldStrength": FIELD_TESLA,
            "ApplicableSafetyStandardAgency": "IEC",
            "PresentationLUTShape": "IDENTITY",
            "AcquisitionContextSequence": [],
            "PulseSequenceName": "tirm" if fat_suppressed else "tse",
            "MRAcquisitionType": "2D",
            "EchoPulseSequence": "SPIN",
            "MultipleSpinEcho": "YES",
            "MultiPlanarExcitation": "NO",
            "PhaseContrast": "NO",
            "TimeOfFlightContrast": "NO",
            "SteadyStatePulseSequence": "NONE",
            "EchoPlanarPulseSequence": "NO",
            "SaturationRecovery": "NO",
            "SpectrallySelectedSuppression": "NONE",
            "OversamplingPhase": "NONE",
            "GeometryOfKSpaceTraversal": "RECTILINEAR",
            "RectilinearPhaseEncodeReordering": "LINEAR",
            "SegmentedKSpaceTraversal": "PARTIAL",
            "NumberOfKSpaceTrajectories": 1,
        }
    )


def _dimensions(phantom: Phantom) -> Dataset:
    """Multi-frame Dimension module: stack, then position in it (PS3.3 C.7.6.17)."""
    organization = derive_uid(phantom.key, "dimensions")
    content = Tag("FrameContentSequence")
    indices = [
        _dataset(
            {
                "DimensionOrganizationUID": organization,
                "DimensionIndexPointer": Tag(keyword),
                "FunctionalGroupPointer": content,
                "DimensionDescriptionLabel": label,
            }
        )
        for keyword, label in (
            ("StackID", "stack"),
            ("InStackPositionNumber", "position in stack"),
        )
    ]
    out = _dataset({"DimensionOrganizationSequence": {"DimensionOrganizationUID": organization}})
    out.DimensionOrganizationType = "3D"
    out.DimensionIndexSequence = Sequence(indices)
    return out


def _shared(phantom: Phantom, *, fat_suppressed: bool) -> Dataset:
    """Functional groups that hold for every frame (PS3.3 C.7.6.16.2, C.8.13.5)."""
    cosines, pixel_mm, step_mm = geometry(phantom)
    _, rows, columns = phantom.volume.grid.shape
    centre, width = window(phantom)
    return _dataset(
        {
            "PixelMeasuresSequence": {
                "PixelSpacing": pixel_mm,
                "SliceThickness": phantom.slice_mm,
                "SpacingBetweenSlices": step_mm,
            },
            "PlaneOrientationSequence": {"ImageOrientationPatient": cosines},
            "FrameAnatomySequence": _anatomy(phantom),
            "PixelValueTransformationSequence": {
                "RescaleIntercept": 0,
                "RescaleSlope": 1,
                "RescaleType": "US",
            },
            "FrameVOILUTSequence": {"WindowCenter": centre, "WindowWidth": width},
            "MRImageFrameTypeSequence": {
                "FrameType": _image_type(fat_suppressed=fat_suppressed),
                **_image_description(fat_suppressed=fat_suppressed),
            },
            "MRTimingAndRelatedParametersSequence": {
                "RepetitionTime": REPETITION_MS,
                "FlipAngle": FLIP_DEG,
                "EchoTrainLength": ECHO_TRAIN,
                "RFEchoTrainLength": ECHO_TRAIN,
                "GradientEchoTrainLength": 0,
                "SpecificAbsorptionRateSequence": {
                    "SpecificAbsorptionRateDefinition": "IEC_WHOLE_BODY",
                    "SpecificAbsorptionRateValue": 1.0,
                },
                "GradientOutputType": "DB_DT",
                "GradientOutput": 30.0,
                "OperatingModeSequence": {
                    "OperatingModeType": "STATIC FIELD",
                    "OperatingMode": "IEC_NORMAL",
                },
            },
            "MRFOVGeometrySequence": {
                "InPlanePhaseEncodingDirection": "ROW",
                "MRAcquisitionFrequencyEncodingSteps": columns,
                "MRAcquisitionPhaseEncodingStepsInPlane": rows,
                "PercentSampling": 100.0,
                "PercentPhaseFieldOfView": 100.0,
            },
            "MREchoSequence": {"EffectiveEchoTime": ECHO_MS},
            "MRModifierSequence": _modifier(fat_suppressed=fat_suppressed),
            "MRImagingModifierSequence": {
                "MagnetizationTransfer": "NONE",
                "BloodSignalNulling": "NO",
                "Tagging": "NONE",
                "TransmitterFrequency": PROTON_MHZ,
                "PixelBandwidth": BANDWIDTH_HZ,
            },
            "MRReceiveCoilSequence": {
                "ReceiveCoilName": "BODY",
                "ReceiveCoilManufacturerName": "",
                "ReceiveCoilType": "BODY",
                "QuadratureReceiveCoil": "YES",
            },
            "MRTransmitCoilSequence": {
                "TransmitCoilName": "BODY",
                "TransmitCoilManufacturerName": "",
                "TransmitCoilType": "BODY",
            },
            "MRAveragesSequence": {"NumberOfAverages": 1},
        }
    )


def _modifier(*, fat_suppressed: bool) -> dict[str, object]:
    """MR Modifier macro (PS3.3 C.8.13.5.5): the inversion pulse."""
    out: dict[str, object] = {
        "InversionRecovery": "YES" if fat_suppressed else "NO",
        "FlowCompensation": "NONE",
        "Spoiling": "NONE",
        "T2Preparation": "NO",
        "SpectrallySelectedExcitation": "NONE",
        "SpatialPresaturation": "NONE",
        "PartialFourier": "NO",
        "ParallelAcquisition": "NO",
    }
    if fat_suppressed:
        out["InversionTimes"] = INVERSION_MS
    return out


def _anatomy(phantom: Phantom) -> dict[str, object]:
    """Frame Anatomy macro (PS3.3 C.7.6.16.2.8)."""
    region: str = phantom.anatomy
    laterality = "U"
    if len(phantom.hips) == 1:
        laterality = "R" if phantom.hips[0].side is Side.RIGHT else "L"
    elif phantom.hips:
        region, laterality = "pelvis", "B"
    value, meaning = _REGIONS[region]
    code = {"CodeValue": value, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}
    return {"FrameLaterality": laterality, "AnatomicRegionSequence": code}


def _frame(phantom: Phantom, z: int, moment: str) -> Dataset:
    """Functional groups of one frame: content and plane position."""
    return _dataset(
        {
            "FrameContentSequence": {
                "FrameAcquisitionNumber": 1,
                "FrameReferenceDateTime": moment,
                "FrameAcquisitionDateTime": moment,
                "FrameAcquisitionDuration": 240000.0,
                "StackID": "1",
                "InStackPositionNumber": z + 1,
                "DimensionIndexValues": [1, z + 1],
            },
            "PlanePositionSequence": {"ImagePositionPatient": position(phantom, z)},
        }
    )
