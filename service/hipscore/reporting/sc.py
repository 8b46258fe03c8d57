"""Pictures of a result as Secondary Capture images (PS3.3 A.8.1): a summary, then each slice.

For viewers that show neither SEG nor SR.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import SecondaryCaptureImageStorage

from hipscore.domain import RESEARCH_USE, Findings, Masks, ModelCard, Volume
from hipscore.reporting import ReportContext, captures, codes, picture, source, uids
from hipscore.reporting.header import LOSSY, headers, silently

#: height of the empty band above and below each picture, pixels
BAND = 56


@silently()
def build_sc(  # noqa: PLR0917 - those of build_sr
    images: Sequence[Dataset],
    volume: Volume | None,
    masks: Sequence[Masks],
    findings: Findings,
    card: ModelCard,
    context: ReportContext,
) -> tuple[Dataset, ...]:
    """Build the series of pictures of one analysed series.

    The first is a summary page, whose text says it all where there is no score; then one
    picture for each slice on which a hip was scored, front to back, with outlines.

    Parameters
    ----------
    images
        Source images in slice order, or one Enhanced MR image, or whatever there is of a
        series that is not scorable. Pixel data is not read.
    volume, masks, findings, card, context
        As for :func:`hipscore.reporting.sr.build_sr`.

    Returns
    -------
    tuple of Dataset
        RGB, 8 bit, Explicit VR Little Endian, one series. Instance numbers count from 1.
    """
    tidy = headers(images, context)
    scene = captures.Scene(
        volume=volume,
        masks=tuple(masks),
        findings=findings,
        card=card,
        context=context,
        header=tidy[0],
    )
    used = [tidy[0 if len(tidy) == 1 else z] for z in captures.scored_slices(findings)]
    common = _common(tidy[0], context)
    made = [_capture(common, captures.summary(scene), 0, used or tidy, context)]
    for number, (z, page) in enumerate(captures.slices(scene), start=1):
        header = tidy[0 if len(tidy) == 1 else z]
        capture = _capture(common, page, number, [header], context)
        if volume is not None and volume.sources[z].frame_number is not None:
            capture.SourceImageSequence[0].ReferencedFrameNumber = volume.sources[z].frame_number
        made.append(capture)
    return tuple(made)


def _common(header: Dataset, context: ReportContext) -> Dataset:
    """What all images of the series have in common; made once, as there are many of them.

    Nothing of it may be set again in one of them: the elements are the same objects.
    """
    common = Dataset()
    common.SOPClassUID = SecondaryCaptureImageStorage
    common.SOPInstanceUID = uids.derive(context.job_key, "sc", "0")
    common.SeriesInstanceUID = uids.derive(context.job_key, "sc", "series")
    common.Modality = "OT"
    common.ConversionType = "WSD"  # PS3.3 C.8.6.1
    common.ImageType = ["DERIVED", "SECONDARY"]
    common.BurnedInAnnotation = "YES"
    common.ImageComments = RESEARCH_USE
    common.SamplesPerPixel = 3
    common.PhotometricInterpretation = "RGB"
    common.PlanarConfiguration = 0
    common.BitsAllocated = common.BitsStored = 8
    common.HighBit = 7
    common.PixelRepresentation = 0
    source.finish(common, header, context, "sc")
    source.copy_elements(header, common, ("RequestAttributesSequence",))
    common.BodyPartExamined = "PELVIS"  # unpaired: HIP would ask for the one side there is not
    common.LossyImageCompression = "00"
    source.copy_elements(header, common, LOSSY)
    del common.SOPInstanceUID, common.file_meta.MediaStorageSOPInstanceUID
    return common


def _capture(
    common: Dataset,
    page: Image.Image,
    number: int,
    shown: Sequence[Dataset],
    context: ReportContext,
) -> Dataset:
    """One image. ``shown`` are the headers of what is on it."""
    capture = Dataset()
    capture.update(common)
    capture.SOPInstanceUID = uids.derive(context.job_key, "sc", str(number))
    capture.file_meta = FileMetaDataset()
    capture.file_meta.update(common.file_meta)
    capture.file_meta.MediaStorageSOPInstanceUID = capture.SOPInstanceUID
    capture.InstanceNumber = number + 1
    capture.PatientOrientation = ["L", "F"] if number else ""
    what = "Scored slice with outlines" if number else "Summary of the score"
    capture.DerivationDescription = f"{what} by hipscore. {RESEARCH_USE}"
    capture.Rows, capture.Columns = page.height + 2 * BAND, page.width
    capture.PixelData = _framed(page)
    capture.SourceImageSequence = [_source(each) for each in shown]
    capture.ReferencedSeriesSequence = source.referenced_series(shown)
    return capture


def _source(header: Dataset) -> Dataset:
    item = source.reference(header)
    item.PurposeOfReferenceCodeSequence = [codes.concept(codes.SOURCE_IMAGE)]
    return item


def _framed(page: Image.Image) -> bytes:
    """Pixel data with bands above and below: viewers write into the corners of a picture."""
    band = bytes(picture.BACKGROUND) * (page.width * BAND)
    data = (band, page.tobytes(), band)
    return b"".join((*data, b"\x00" * (sum(map(len, data)) % 2)))
