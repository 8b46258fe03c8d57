"""Pictures of a result as Secondary Capture images (PS3.3 A.8.1): a summary, then each slice.

For viewers that show neither SEG nor SR.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from pydicom.dataset import Dataset
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
    made = [_capture(captures.summary(scene), 0, used or tidy, tidy[0], context)]
    view = ["L", "F"]
    for number, (z, page) in enumerate(captures.slices(scene), start=1):
        header = tidy[0 if len(tidy) == 1 else z]
        capture = _capture(page, number, [header], tidy[0], context)
        if volume is not None and volume.sources[z].frame_number is not None:
            capture.SourceImageSequence[0].ReferencedFrameNumber = volume.sources[z].frame_number
        capture.PatientOrientation = view
        made.append(capture)
    return tuple(made)


def _capture(
    page: Image.Image,
    number: int,
    shown: Sequence[Dataset],
    header: Dataset,
    context: ReportContext,
) -> Dataset:
    """One image. ``shown`` are the headers of what is on it."""
    capture = Dataset()
    capture.SOPClassUID = SecondaryCaptureImageStorage
    capture.SOPInstanceUID = uids.derive(context.job_key, "sc", str(number))
    capture.SeriesInstanceUID = uids.derive(context.job_key, "sc", "series")
    capture.Modality = "OT"
    capture.ConversionType = "WSD"  # PS3.3 C.8.6.1
    capture.InstanceNumber = number + 1
    capture.PatientOrientation = ""
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "YES"
    what = "Scored slice with outlines" if number else "Summary of the score"
    capture.DerivationDescription = f"{what} by hipscore. {RESEARCH_USE}"
    capture.ImageComments = RESEARCH_USE
    capture.SamplesPerPixel = 3
    capture.PhotometricInterpretation = "RGB"
    capture.PlanarConfiguration = 0
    page = _framed(page)
    capture.Rows, capture.Columns = page.height, page.width
    capture.BitsAllocated = capture.BitsStored = 8
    capture.HighBit = 7
    capture.PixelRepresentation = 0
    data = page.tobytes()
    capture.PixelData = data + b"\x00" * (len(data) % 2)
    source.finish(capture, header, context, "sc")
    source.copy_elements(header, capture, ("RequestAttributesSequence",))
    capture.BodyPartExamined = "PELVIS"  # unpaired: HIP would ask for the one side there is not
    capture.SourceImageSequence = [_source(each) for each in shown]
    capture.ReferencedSeriesSequence = source.referenced_series(shown)
    capture.LossyImageCompression = "00"
    source.copy_elements(header, capture, LOSSY)
    return capture


def _source(header: Dataset) -> Dataset:
    item = source.reference(header)
    item.PurposeOfReferenceCodeSequence = [codes.concept(codes.SOURCE_IMAGE)]
    return item


def _framed(page: Image.Image) -> Image.Image:
    """Leave bands above and below: viewers write into the corners of a picture."""
    framed = Image.new("RGB", (page.width, page.height + 2 * BAND), picture.BACKGROUND)
    framed.paste(page, (0, BAND))
    return framed
