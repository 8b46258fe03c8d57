"""Codes of the reports: standard ones (PS3.16), and the private scheme 99HIPSCORE.

Codes are kept as immutable ``Code`` tuples. highdicom makes a fresh ``CodedConcept`` of
every ``Code``, which is most of the work of a report, and inserts a ``CodedConcept`` by
reference. Where nothing is written into the item afterwards it gets one that all share.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from highdicom.sr import CodedConcept
from pydicom.sr.coding import Code

from hipscore.change import ChangeCode
from hipscore.domain import RESEARCH_USE, Channel, ReasonCode, Remark, Side
from hipscore.quality import QualityCode

# --- PS3.16 -------------------------------------------------------------------------
RIGHT = Code("24028007", "SCT", "Right")
LEFT = Code("7771000", "SCT", "Left")
RIGHT_AND_LEFT = Code("51440002", "SCT", "Right and left")  # CID 244
LATERALITY: Mapping[Side, Code] = MappingProxyType({Side.RIGHT: RIGHT, Side.LEFT: LEFT})
PRESENT = Code("52101004", "SCT", "Present")  # CID 240
ABSENT = Code("272519000", "SCT", "Absent")

ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")  # CID 7150
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
FEMORAL_HEAD = Code("2812003", "SCT", "Femoral head")
HIP_JOINT = Code("24136001", "SCT", "Hip joint")
EDEMA = Code("79654002", "SCT", "Edema")
INFLAMMATION = Code("409774005", "SCT", "Inflammation")

ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")  # CID 7162
MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")  # CID 7021
IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
MRI = Code("25056-3", "LN", "MRI unspecified body region")  # CID 100
COMMENT = Code("121106", "DCM", "Comment")
SOURCE_IMAGE = Code(  # CID 7202
    "121322", "DCM", "Source image for image processing operation"
)
PRIOR_REPORT = Code("122075", "DCM", "Prior report for current patient")
STUDY_DATE = Code("111060", "DCM", "Study Date")
YES = Code("373066001", "SCT", "Yes")  # CID 230
NO = Code("373067005", "SCT", "No")
VOLUME = Code("118565006", "SCT", "Volume")
SEGMENTED_VOXELS = Code("126030", "DCM", "Sum of segmented voxel method for volume")  # CID 7474
ENGLISH = Code("en", "RFC5646", "English")

# TID 1600 to 1604: image library
IMAGE_LIBRARY = Code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = Code("126200", "DCM", "Image Library Group")
SOURCE = Code("260753009", "SCT", "Source")
MODALITY = Code("121139", "DCM", "Modality")
FRAME_OF_REFERENCE = Code("112227", "DCM", "Frame of Reference UID")
ROWS = Code("110910", "DCM", "Pixel Data Rows")
COLUMNS = Code("110911", "DCM", "Pixel Data Columns")
HORIZONTAL_SPACING = Code("111026", "DCM", "Horizontal Pixel Spacing")
VERTICAL_SPACING = Code("111066", "DCM", "Vertical Pixel Spacing")
SLICE_THICKNESS = Code("112225", "DCM", "Slice Thickness")
SLICE_SPACING = Code("112226", "DCM", "Spacing between slices")
POSITION = (
    Code("110901", "DCM", "Image Position (Patient) X"),
    Code("110902", "DCM", "Image Position (Patient) Y"),
    Code("110903", "DCM", "Image Position (Patient) Z"),
)
ORIENTATION = (
    Code("110904", "DCM", "Image Orientation (Patient) Row X"),
    Code("110905", "DCM", "Image Orientation (Patient) Row Y"),
    Code("110906", "DCM", "Image Orientation (Patient) Row Z"),
    Code("110907", "DCM", "Image Orientation (Patient) Column X"),
    Code("110908", "DCM", "Image Orientation (Patient) Column Y"),
    Code("110909", "DCM", "Image Orientation (Patient) Column Z"),
)

# Units (UCUM)
ML = Code("mL", "UCUM", "milliliter")
MM = Code("mm", "UCUM", "millimeter")
NO_UNITS = Code("1", "UCUM", "no units")
RATIO = Code("{ratio}", "UCUM", "ratio")
SLICES = Code("{slices}", "UCUM", "slices")
HIPS = Code("{hips}", "UCUM", "hips")
PIXELS = Code("{pixels}", "UCUM", "pixels")
COSINE = Code("{-1:1}", "UCUM", "{-1:1}")

# --- 99HIPSCORE: stable, at most 16 characters (longer ones turn into Long Code Value) --
SCHEME = "99HIPSCORE"
SCHEME_NAME = "hipscore private codes"
SCHEME_ORGANIZATION = "hipscore open-source project"


def private(value: str, meaning: str) -> Code:
    """A code of 99HIPSCORE.

    Raises
    ------
    ValueError
        If the value is longer than SH allows (16) or the meaning than LO (64).
    """
    if len(value) > 16 or len(meaning) > 64:
        msg = f"code {value!r} ({meaning!r}) is longer than 16 (64) characters"
        raise ValueError(msg)
    return Code(value, SCHEME, meaning)


UNET_SCORE = private("UNET_SCORE", "UNet-score")
BME_SCORE = private("BME_SCORE", "UNet-score, bone marrow edema only")
SYNOVITIS_SCORE = private("SYNOVITIS_SCORE", "UNet-score, synovitis-effusion only")
MEAN_RATIO = private("MEAN_RATIO", "Mean lesion to femoral head ratio per slice")
VOLUME_INDEX = private("VOLUME_INDEX", "Whole-volume lesion to femoral head ratio")
SLICES_USED = private("SLICES_USED", "Number of slices summed in the score")
HIPS_SCORED = private("HIPS_SCORED", "Number of hips summed in the score")
EFFUSION = private("EFFUSION", "Maximal effusion thickness in plane")
METHOD = private("ZHENG2023", "UNet-score, Zheng et al. 2023")
INTENDED_USE = private("INTENDED_USE", "Intended use")
RESEARCH = private("RESEARCH", RESEARCH_USE)
STATUS = private("STATUS", "Scoring status")
SCORED = private("SCORED", "Scored")
NOT_SCORED = private("NOT_SCORED", "Not scored")
REASON = private("REASON", "Reason for not scoring")
QUALITY = private("QUALITY", "Quality remark")
BME_PRESENCE = private("BME_SEGMENTED", "Bone marrow edema segmented")
SYNOVITIS_PRESENCE = private("SYNOV_SEGMENTED", "Synovitis-effusion segmented")
EARLIER_SCORE = private("EARLIER_SCORE", "UNet-score of the earlier study")
EARLIER_SLICES = private("EARLIER_SLICES", "Number of slices of the earlier study")
SCORE_CHANGE = private("SCORE_CHANGE", "Change of the UNet-score since the earlier study")
RATIO_CHANGE = private("RATIO_CHANGE", "Change of the mean ratio per slice")
INDEX_CHANGE = private("INDEX_CHANGE", "Change of the whole-volume ratio")
COMPARABLE = private("COMPARABLE", "Comparable with the earlier study")
CHANGE_REMARK = private("CHANGE_REMARK", "Remark on the change")
PRIORITY = private("PRIORITY", "Reading priority by the limits of this site")
FLAGGED = private("FLAGGED", "Flagged")
NOT_FLAGGED = private("NOT_FLAGGED", "Not flagged")
OTHER = private("OTHER", "Other, see comment")

#: codes of the reasons and remarks this release knows
REMARKS: Mapping[str, Code] = MappingProxyType(
    {
        ReasonCode.NO_HIP_FOUND.value: private("NO_HIP_FOUND", "No hip found"),
        ReasonCode.NOT_CORONAL.value: private("NOT_CORONAL", "Not coronal"),
        ReasonCode.TOO_FEW_SLICES.value: private("TOO_FEW_SLICES", "Too few slices"),
        ReasonCode.MISSING_SLICES.value: private("MISSING_SLICES", "Missing slices"),
        ReasonCode.MIXED_GEOMETRY.value: private("MIXED_GEOMETRY", "Mixed geometry"),
        ReasonCode.NOT_FAT_SUPPRESSED.value: private("NO_FAT_SUPPR", "Not fat suppressed"),
        ReasonCode.UNSUPPORTED_PIXEL_DATA.value: private("PIXEL_DATA", "Unsupported pixel data"),
        ReasonCode.IMPLAUSIBLE_SEGMENTATION.value: private(
            "IMPLAUSIBLE_SEG", "Implausible segmentation"
        ),
        ReasonCode.NOT_MR.value: private("NOT_MR", "Not MR"),
        ReasonCode.NO_RULE.value: private("NO_RULE", "No rule of the site takes the series"),
        "one_hip_only": private("ONE_HIP_ONLY", "Only one hip was scored"),
        QualityCode.LOW_CONFIDENCE.value: private("LOW_CONFIDENCE", "Low confidence of location"),
        QualityCode.HEAD_RADIUS_UNUSUAL.value: private(
            "HEAD_RADIUS", "Unusual radius of a femoral head"
        ),
        QualityCode.HEAD_SIZE_DISAGREEMENT.value: private(
            "HEAD_SIZES", "Femoral heads of different size"
        ),
        QualityCode.CLIPPED_FIELD_OF_VIEW.value: private(
            "CLIPPED_VIEW", "Hip partly outside the field of view"
        ),
        QualityCode.LESION_AT_CROP_BORDER.value: private(
            "LESION_AT_BORDER", "Lesion at the border of the analysed region"
        ),
        QualityCode.SIGNAL_VOID.value: private("SIGNAL_VOID", "Signal void or pile-up"),
        QualityCode.NOISY_IMAGE.value: private("NOISY_IMAGE", "Noisy image"),
        QualityCode.WEAK_FAT_SUPPRESSION.value: private("WEAK_FAT_SUPPR", "Weak fat suppression"),
        QualityCode.MOTION_OR_GHOSTING.value: private("MOTION_GHOSTING", "Motion or ghosting"),
        ChangeCode.SLICE_COUNTS.value: private("SLICE_COUNTS", "Other number of slices than then"),
        ChangeCode.OTHER_MODEL.value: private("OTHER_MODEL", "Other model than then"),
        ChangeCode.HIPS.value: private("OTHER_HIPS", "Other hips scored than then"),
    }
)


def remark_code(remark: Remark) -> Code:
    """The code of a reason or quality remark; ``OTHER`` for one that has none yet."""
    return REMARKS.get(str(remark.code), OTHER)


def concept(code: Code) -> CodedConcept:
    """A fresh code sequence item."""
    return CodedConcept.from_code(code)


@cache
def shared(code: Code) -> CodedConcept:
    """The code sequence item of a code, one for all reports: to be read, never changed."""
    return concept(code)


# --- structures -----------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """How one mask channel is named (CID 7150, CID 7151) and shown (sRGB, 0 to 255)."""

    noun: str
    category: Code
    property_type: Code
    region: Code
    rgb: tuple[int, int, int]


STRUCTURES: Mapping[Channel, Structure] = MappingProxyType(
    {
        Channel.FEMORAL_HEAD: Structure(
            noun="femoral head",
            category=ANATOMICAL_STRUCTURE,
            property_type=FEMORAL_HEAD,
            region=FEMORAL_HEAD,
            rgb=(0, 200, 220),
        ),
        Channel.BME: Structure(
            noun="bone marrow edema",
            category=ABNORMAL_STRUCTURE,
            property_type=EDEMA,
            region=FEMORAL_HEAD,
            rgb=(255, 165, 0),
        ),
        Channel.SYNOVITIS: Structure(
            noun="synovitis-effusion",
            category=ABNORMAL_STRUCTURE,
            property_type=INFLAMMATION,
            region=HIP_JOINT,
            rgb=(255, 70, 200),
        ),
    }
)


def segment_label(side: Side, channel: Channel) -> str:
    """Name of a segment, at most 64 characters: ``Right femoral head``."""
    return f"{side.value.capitalize()} {STRUCTURES[channel].noun}"


_TYPOGRAPHY = str.maketrans(
    {"²": "2", "³": "3", "–": "-", "—": "-", "×": "x", "≥": ">=", "≤": "<=", "µ": "u", "’": "'"}
)


def plain(text: str) -> str:
    """Text in the default repertoire, so that it can be written in any character set.

    Control characters, which no text for people needs, become spaces.
    """
    folded = unicodedata.normalize("NFKD", text.translate(_TYPOGRAPHY))
    shown = folded.encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[\x00-\x1f\x7f]", " ", shown)
