"""Semi-real STIR: real T1 anatomy in another contrast, with lesions whose truth is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from hipscore.domain import FloatArray, Masks, Volume
from hipscore.phantom import Burden
from hipscore.scoring import combine, score_hip
from hiptrain.acquire import Protocol, acquire, draw_protocol
from hiptrain.anatomy import Anatomy, Bend, deform, sphere_of
from hiptrain.contrast import Scanner, draw_scanner, draw_tissues, scan, stir
from hiptrain.lesions import add_distractors, inflame

DESCRIPTION = "t2_tirm_cor semi-synthetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to make of an anatomy. ``burden`` None draws one; ``bend`` None keeps the shape.

    ``fat`` is the range of fat's signal, muscle = 1 (None: mostly well suppressed).
    ``rough`` lets the scanner and the protocol vary as far as sites do, and ``scanner``
    and ``protocol`` fix them instead.
    """

    burden: Burden | None = None
    bend: Bend | None = None
    distractors: bool = True
    fat: tuple[float, float] | None = (0.12, 0.5)
    rough: bool = False
    scanner: Scanner | None = None
    protocol: Protocol | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Semireal:
    """A semi-real series and its truth, one :class:`Masks` per hip."""

    volume: Volume
    masks: tuple[Masks, ...]
    burden: Burden


def semireal(anatomy: Anatomy, rng: np.random.Generator, options: Options) -> Semireal:
    """Give an anatomy STIR contrast, lesions, possibly another shape, and a scanner's marks."""
    burden = options.burden or Burden(
        rng.choice([item.value for item in Burden], p=[0.25, 0.25, 0.25, 0.25])
    )
    tissues = draw_tissues(rng, options.fat)
    voxels = stir(anatomy, tissues, rng)
    if options.distractors:
        add_distractors(voxels, anatomy, tissues, rng)
    masks = inflame(voxels, anatomy, burden, tissues, rng)
    source = anatomy.volume
    volume = Volume(voxels=voxels, grid=source.grid, sources=source.sources)
    if options.bend is not None:
        volume, masks = deform(volume, masks, rng, options.bend)
    protocol = options.protocol
    if options.rough and protocol is None:
        protocol = draw_protocol(rng, len(masks))
    if protocol is not None:
        volume, masks = acquire(volume, masks, protocol, rng)
    scanner = options.scanner or draw_scanner(rng, rough=options.rough)
    volume = Volume(
        voxels=scan(volume.voxels, rng, volume.grid.spacing_mm[1], scanner),
        grid=volume.grid,
        sources=volume.sources,
    )
    return Semireal(volume=volume, masks=masks, burden=burden)


def derive_uid(*parts: object) -> str:
    """A UID that depends on ``parts`` alone: ``2.25.`` and a 128-bit number (PS3.5 B.2)."""
    digest = hashlib.sha256("/".join(["hiptrain", *map(str, parts)]).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def to_datasets(
    images: Sequence[Dataset], voxels: FloatArray, *, key: str, new_study: bool = False
) -> list[Dataset]:
    """Put voxels into the images of the series they were made from.

    The headers stay, but for identity, contrast and pixels: a new series (and, on
    request, a new study), image type DERIVED, inversion recovery, no contrast agent.

    Parameters
    ----------
    images
        The original images in slice order.
    voxels
        ``(Z, Y, X)`` values to store, 0 to 4095.
    key
        What the new UIDs are derived from, together with the old ones.
    """
    made = []
    for image, plane in zip(images, voxels, strict=True):
        copy = Dataset()
        for element in image:
            if not element.tag.is_private and element.keyword not in _DROPPED:
                copy.add(deepcopy(element))  # an assignment below would change a shared element
        pixels = np.clip(np.rint(plane), 0, 4095).astype("<u2")
        copy.update(_CONTRAST)
        copy.ImageType = ["DERIVED", "SECONDARY", *list(image.get("ImageType", []))[2:]]
        copy.DerivationDescription = "T1 image given STIR-like contrast and synthetic lesions"
        copy.SOPInstanceUID = UID(derive_uid(key, image.SOPInstanceUID))
        copy.SeriesInstanceUID = UID(derive_uid(key, image.SeriesInstanceUID))
        if new_study:
            copy.StudyInstanceUID = derive_uid(key, image.StudyInstanceUID)
            copy.FrameOfReferenceUID = derive_uid(key, image.FrameOfReferenceUID)
        copy.SeriesNumber = 900 + int(image.get("SeriesNumber", 0) or 0) % 100
        copy.BitsAllocated, copy.BitsStored, copy.HighBit, copy.PixelRepresentation = 16, 12, 11, 0
        copy.SmallestImagePixelValue, copy.LargestImagePixelValue = (
            int(pixels.min()),
            int(pixels.max()),
        )
        bright = float(np.percentile(voxels, 99.0))
        copy.WindowCenter, copy.WindowWidth = round(bright / 2), max(1, round(bright))
        copy.PixelData = pixels.tobytes()
        copy["PixelData"].VR = "OW"
        copy.file_meta = _file_meta(image, copy.SOPInstanceUID)
        made.append(copy)
    return made


_DROPPED = {
    "PixelData",
    "ContrastBolusAgent",
    "ContrastBolusVolume",
    "ContrastBolusTotalDose",
    "ContrastBolusIngredient",
    "ContrastBolusIngredientConcentration",
    "ReferencedImageSequence",
    "WindowCenterWidthExplanation",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
}


def _contrast() -> Dataset:
    """Attributes of the MR Image module (PS3.3 C.8.3.1) that say STIR."""
    tags = Dataset()
    tags.SeriesDescription = DESCRIPTION
    tags.ProtocolName = DESCRIPTION
    tags.ScanningSequence = ["SE", "IR"]
    tags.SequenceName = "*tir2d1_11"
    tags.InversionTime = "150"
    tags.RepetitionTime = "4500"
    tags.EchoTime = "42"
    tags.EchoTrainLength = "11"
    return tags


_CONTRAST = _contrast()


def _file_meta(image: Dataset, uid: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = image.SOPClassUID
    meta.MediaStorageSOPInstanceUID = UID(uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def truth(made: Semireal, **about: object) -> dict[str, object]:
    """The truth's measurements, ready for JSON: scores and volumes of every hip."""
    hips = [sphere_of(masks, made.volume.grid) for masks in made.masks]
    scored = [
        score_hip(made.volume, hip, masks) for hip, masks in zip(hips, made.masks, strict=True)
    ]
    return {
        **about,
        "burden": made.burden.value,
        "unet_score": combine(scored).unet_score,
        "hips": [
            {
                "side": item.hip.side.value,
                "centre_mm": [round(value, 2) for value in item.hip.centre_mm],
                "radius_mm": round(item.hip.radius_mm, 2),
                "unet_score": item.unet_score,
                "bme_score": item.bme_score,
                "synovitis_score": item.synovitis_score,
                "slices_used": len(item.slices),
                "femoral_head_ml": item.femoral_head_ml,
                "bme_ml": item.bme_ml,
                "synovitis_ml": item.synovitis_ml,
                "effusion_mm": item.effusion_mm,
            }
            for item in scored
        ],
    }


def write(
    images: Sequence[Dataset],
    made: Semireal,
    out: Path,
    *,
    key: str,
    new_study: bool = False,
    about: Iterable[tuple[str, object]] = (),
) -> dict[str, object]:
    """Write one series: ``NNN.dcm``, ``truth.json`` and ``truth.npz`` (masks by side).

    Only for shapes the images' geometry still describes (``Options.bend`` None).
    """
    out.mkdir(parents=True, exist_ok=True)
    made_images = to_datasets(images, made.volume.voxels, key=key, new_study=new_study)
    for number, image in enumerate(made_images, start=1):
        image.save_as(out / f"{number:03d}.dcm", enforce_file_format=True)
    uid = str(made_images[0].SeriesInstanceUID)
    result = truth(made, series_instance_uid=uid, **dict(about))
    (out / "truth.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(
        out / "truth.npz",
        allow_pickle=False,
        **{masks.side.value: masks.voxels for masks in made.masks},
    )
    return result
