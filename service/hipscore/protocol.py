"""Whether a series is fat-suppressed, from what the scanner wrote about the acquisition."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydicom.dataset import Dataset

from hipscore.attributes import first_item, group, numbers, text, texts
from hipscore.domain import ReasonCode, Unsuitable

#: inversion times that null fat between 0.5 and 3 T, ms
FAT_NULLING_MS = (80.0, 300.0)

#: words of series descriptions, protocol and sequence names; no letter may adjoin them
_WORDS = re.compile(
    r"(?<![a-z])(?:"
    r"stir|tirm|ir[ _-]?fse|ir[ _-]?tse|fse[ _-]?ir|tse[ _-]?ir"
    r"|(?:(?:t1|t2|pd)w?)?(?:tse|fse)?fs|fat[ _-]?sat[a-z]*|fat[ _-]?sup[a-z]*"
    r"|spair|spir|chess|proset|water"
    r"|dixon.*[ _-]w"
    r")(?![a-z])"
)
#: the same words after a "no"
_NEGATED = re.compile(
    r"(?<![a-z])(?:no|non|not|without|w/o|ohne|sans)[ _-]*"
    r"(?:fs|fat[ _-]?sat[a-z]*|fat[ _-]?sup[a-z]*|stir|spair|spir)(?![a-z])"
)
#: values of Image Type that name the fat or the opposed images of a Dixon series
_NOT_WATER = frozenset({"FAT", "IN_PHASE", "OUT_PHASE", "OPP_PHASE", "OPPOSED_PHASE"})


def check_protocol(images: Sequence[Dataset]) -> None:
    """Raise ``not_fat_suppressed`` unless every image is :func:`fat_suppressed`.

    Raises
    ------
    Unsuitable
        ``not_fat_suppressed``.
    """
    if all(map(fat_suppressed, images)):
        return
    raise Unsuitable(
        ReasonCode.NOT_FAT_SUPPRESSED,
        "neither inversion time, scan options nor series description show fat suppression "
        "(STIR, TIRM or fat-saturated T2 is needed)",
    )


def fat_suppressed(image: Dataset) -> bool:
    """Whether the attributes of an image show fat suppression.

    Evidence, any of: an inversion time that nulls fat (0018,0082; 0018,9079), the scan
    option FS (0018,0022), suppression of fat or excitation of water (0018,9025;
    0018,9026), STIR contrast (0008,9209), a Dixon water image, or the usual words in the
    series description, protocol or sequence name. PS3.3 C.8.3.1, C.8.13.
    """
    shared = first_item(image, "SharedFunctionalGroupsSequence")
    frame = first_item(image, "PerFrameFunctionalGroupsSequence")
    modifier = group(shared, frame, "MRModifierSequence")
    frame_type = group(shared, frame, "MRImageFrameTypeSequence")

    kind = {*texts(image, "ImageType"), *texts(frame_type, "FrameType")}
    if kind & _NOT_WATER:
        return False
    times = [*numbers(image, "InversionTime"), *numbers(modifier, "InversionTimes")]
    low, high = FAT_NULLING_MS
    return (
        any(low <= time <= high for time in times)
        or "FS" in texts(image, "ScanOptions")
        or "WATER" in kind
        or text(image, "SpectrallySelectedSuppression") == "FAT"
        or text(modifier, "SpectrallySelectedExcitation") == "WATER"
        or "STIR" in {text(image, "AcquisitionContrast"), text(frame_type, "AcquisitionContrast")}
        or _named(image)
    )


def _named(image: Dataset) -> bool:
    """Whether a name of the series, protocol or sequence says so."""
    for keyword in ("SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName"):
        words = _NEGATED.sub(" ", " ".join(texts(image, keyword)).lower())
        if _WORDS.search(words):
            return True
    return False
