"""The nouns of hipscore: what goes from images to findings to DICOM objects.

Everything here is frozen. Arrays are read-only once they are inside one of
these types, and every array documents its shape, axis order and unit.

Shape legend used throughout the core
-------------------------------------
``Z`` slice (anterior to posterior), ``Y`` row, ``X`` column, ``K`` channel
(see :class:`Channel`), ``N`` item of a batch, ``C`` input plane, ``H`` crop row,
``W`` crop column. Index vectors are always ordered ``(z, y, x)``; positions are
DICOM patient coordinates in mm, ``(x, y, z)`` = towards Left, Posterior,
Superior (PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
DoubleArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]
Point: TypeAlias = tuple[float, float, float]

RESEARCH_USE = "For research, not for clinical decisions"
#: a hip with fewer usable slices is not scored, a series with fewer slices neither
MIN_SLICES = 5
#: what stands for a Patient ID where there is none, letters and digits alone
_NOBODY = frozenset(
    (
        *("anon", "anonym", "anonymised", "anonymized", "anonymous", "deidentified"),
        *("dummy", "id", "keine", "na", "nil", "nobody", "noid", "noname", "none"),
        *("notavailable", "null", "patient", "patientid", "tbd", "test", "testpatient"),
        *("unbekannt", "undefined", "unidentified", "unknown", "unnamed"),
        *("x", "xx", "xxx", "xxxx"),
    )
)


class Side(StrEnum):
    """The patient's side, never the side of the picture."""

    RIGHT = "right"
    LEFT = "left"


class Channel(IntEnum):
    """Index of a structure on the ``K`` axis of masks and of the network's output."""

    FEMORAL_HEAD = 0
    BME = 1
    SYNOVITIS = 2


class Group(StrEnum):
    """Slice group of HIMRISS, in patient A-P order around the central slice."""

    ANTERIOR = "anterior"
    CENTRAL = "central"
    POSTERIOR = "posterior"


class ReasonCode(StrEnum):
    """Why a series (or one hip of it) has no score. These strings are stable."""

    NO_HIP_FOUND = "no_hip_found"
    NOT_CORONAL = "not_coronal"
    TOO_FEW_SLICES = "too_few_slices"
    MISSING_SLICES = "missing_slices"
    MIXED_GEOMETRY = "mixed_geometry"
    NOT_FAT_SUPPRESSED = "not_fat_suppressed"
    UNSUPPORTED_PIXEL_DATA = "unsupported_pixel_data"
    IMPLAUSIBLE_SEGMENTATION = "implausible_segmentation"
    NOT_MR = "not_mr"
    NO_RULE = "no_rule"


class Unsuitable(Exception):
    """The series cannot be scored, for a clinical or technical reason of its own.

    Never retried; always reported.
    """

    def __init__(self, code: ReasonCode, text: str) -> None:
        super().__init__(f"{code.value}: {text}")
        self.code = code
        self.text = text


class Transient(Exception):
    """Something outside failed for now (database, broker, peer, disk). Retried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """A stable code with one sentence: a reason or a quality remark."""

    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedInstance:
    """One SOP instance as it was received: identity, digest and what ordering needs.

    ``position_mm`` (x, y, z) and ``orientation`` (row cosines, column cosines) are
    None where the header does not give them at the top level (Enhanced MR).
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    sha256: str
    size: int
    instance_number: int | None = None
    number_of_frames: int = 1
    images_in_acquisition: int | None = None
    position_mm: Point | None = None
    orientation: tuple[float, ...] | None = None
    image_type: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A regular grid of voxels in patient space.

    Parameters
    ----------
    shape
        ``(Z, Y, X)``.
    affine
        ``(4, 4)`` float64, maps the homogeneous index ``(z, y, x, 1)`` of a voxel
        centre to ``(x_mm, y_mm, z_mm, 1)`` in LPS. Column 0 is the step from
        slice to slice (the distance between slice centres, gap included).
    """

    shape: tuple[int, int, int]
    affine: DoubleArray

    @property
    def spacing_mm(self) -> Point:
        """Step between neighbours along ``(z, y, x)``, mm."""
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(steps[0]), float(steps[1]), float(steps[2]))

    @property
    def pixel_mm2(self) -> float:
        """Area of one pixel in its slice, mm²."""
        _, dy, dx = self.spacing_mm
        return dy * dx

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel, slice gap included, mL."""
        dz, dy, dx = self.spacing_mm
        return dz * dy * dx / 1000.0

    def to_mm(self, index: Sequence[float] | DoubleArray) -> DoubleArray:
        """Positions ``(..., 3)`` in LPS mm of the indices ``(..., 3)`` = (z, y, x)."""
        result: DoubleArray = (
            np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        )
        return result

    def to_index(self, mm: Sequence[float] | DoubleArray) -> DoubleArray:
        """Fractional indices ``(..., 3)`` = (z, y, x) of the positions ``(..., 3)`` in LPS mm."""
        result: DoubleArray = (
            np.asarray(mm, dtype=np.float64) - self.affine[:3, 3]
        ) @ np.linalg.inv(self.affine[:3, :3]).T
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceSource:
    """Which SOP instance (and which frame of it, 1-based, if it is multi-frame) a slice is."""

    sop_class_uid: str
    sop_instance_uid: str
    instance_number: int
    frame_number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A series as one volume.

    Parameters
    ----------
    voxels
        ``(Z, Y, X)`` float32, rescaled stored values (PS3.3 C.11.1.1.2), slices
        ordered anterior to posterior, rows and columns as in the source images.
    grid
        Its grid in patient space.
    sources
        Length ``Z``: where each slice came from.
    """

    voxels: FloatArray
    grid: Grid
    sources: tuple[SliceSource, ...]

    def __post_init__(self) -> None:
        if self.voxels.shape != self.grid.shape or len(self.sources) != self.grid.shape[0]:
            msg = (
                f"voxels {self.voxels.shape}, grid {self.grid.shape} and "
                f"{len(self.sources)} slice sources do not agree"
            )
            raise ValueError(msg)
        self.voxels.flags.writeable = False
        self.grid.affine.flags.writeable = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hip:
    """One located femoral head: centre in LPS mm, radius in mm, confidence in [0, 1]."""

    side: Side
    centre_mm: Point
    radius_mm: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """Structures of one hip on the source grid.

    ``voxels`` is ``(K, Z, Y, X)`` bool, K ordered as :class:`Channel`; channels may
    overlap (edema lies inside the head).
    """

    side: Side
    voxels: BoolArray

    def __post_init__(self) -> None:
        self.voxels.flags.writeable = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceScore:
    """One scored slice of one hip. ``slice_index`` counts along Z of the volume."""

    slice_index: int
    source: SliceSource
    group: Group
    ratio: float
    bme_ratio: float
    synovitis_ratio: float
    head_mm2: float
    bme_mm2: float
    synovitis_mm2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HipFindings:
    """What was measured on one hip. Scores are None where ``reason`` says why."""

    hip: Hip
    reason: Remark | None
    slices: tuple[SliceScore, ...] = ()
    unet_score: float | None = None
    bme_score: float | None = None
    synovitis_score: float | None = None
    mean_ratio: float | None = None
    whole_volume_index: float | None = None
    femoral_head_ml: float = 0.0
    bme_ml: float = 0.0
    synovitis_ml: float = 0.0
    effusion_mm: float = 0.0

    @property
    def scored(self) -> bool:
        return self.unet_score is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The outcome of one analysed series: a score, or the reason why there is none."""

    hips: tuple[HipFindings, ...]
    reason: Remark | None
    unet_score: float | None
    quality: tuple[Remark, ...] = ()

    @property
    def scored(self) -> bool:
        return self.reason is None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSpec:
    """The picture a network takes: ``(context, rows, columns)`` at ``pixel_mm``.

    Planes are in canonical radiological view: columns run to the patient's left,
    rows to the feet. ``context`` neighbouring slices (odd; the middle one is the
    slice itself) form the C axis, anterior first.
    """

    rows: int
    columns: int
    pixel_mm: float
    context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Identity and contract of a model bundle (``bundle.json``)."""

    id: str
    version: str
    sha256: str
    localiser: PlaneSpec
    segmenter: PlaneSpec
    #: probability thresholds, K ordered as Channel
    thresholds: tuple[float, float, float] = (0.5, 0.5, 0.5)
    #: probability above which a voxel belongs to a located head
    localiser_threshold: float = 0.5
    #: a located head below this confidence is not a hip
    min_confidence: float = 0.5
    #: the crop stack reaches this far beyond the head, in front and behind, mm
    margin_mm: float = 12.0
    name: str = ""
    trained_on: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What computed the networks of one analysis.

    ``declined`` names the faster engines that were tried and not used, and why.
    """

    provider: str
    precision: str
    #: library and version
    runtime: str
    #: the processor or the graphics card
    device: str
    declined: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.provider} {self.precision} ({self.runtime}, {self.device})"


class Segmenter(Protocol):
    """The networks of a bundle. Second implementations: the tests' analytic one."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def engine(self) -> Engine:
        """What computes now: another after a device was lost."""
        ...

    def localise(self, planes: FloatArray) -> FloatArray:
        """Head probability ``(N, 2, H, W)``, channels (right, left), of ``(N, C, H, W)``."""
        ...

    def segment(self, crops: FloatArray) -> FloatArray:
        """Probability ``(N, K, H, W)``, K as Channel, of crops ``(N, C, H, W)``."""
        ...


class ArtifactKind(StrEnum):
    SEG = "seg"
    SR = "sr"
    #: the report once more as Comprehensive SR, for peers that do not take SR
    SR_FALLBACK = "sr_comprehensive"
    OVERLAY = "overlay"
    #: secondary captures: the summary page and each scored slice, one object each
    SC = "sc"
    #: the report as encapsulated PDF
    PDF = "pdf"
    #: the result as HL7 v2 message ORU^R01
    ORU = "oru"
    #: the note by which a withdrawn result is retracted (IHE RAD IOCM)
    REJECTION = "rejection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One built output: its bytes are final and are sent as they are, however often.

    ``number`` tells several of a kind apart, in the order in which they are to be shown.
    """

    kind: ArtifactKind
    media_type: str
    data: bytes
    sop_class_uid: str | None = None
    sop_instance_uid: str | None = None
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyIdentity:
    """Whose study it is and who ordered it, as its images or the order say.

    Every text is decoded; ``""`` where nothing is known. It is kept in the database for
    worklists, reports and trends, and never written to a log, a metric, a URL or the ledger.

    Parameters
    ----------
    patient_id, issuer_of_patient_id
        (0010,0020), (0010,0021). Alone neither identifies anybody; see ``patient_key``.
    patient_name
        (0010,0010) as PS3.5 6.2.1 writes it: ``Family^Given^…=ideographic=phonetic``.
    birth_date, study_date
        ``YYYYMMDD`` or empty.
    sex
        ``M``, ``F``, ``O`` or empty.
    study_time
        ``HHMMSS.FFFFFF``, shortened from the right, or empty.
    order_source
        Where accession number, requested procedure and referring physician come from:
        ``images``, ``worklist`` (MWL), ``pacs`` (study-root C-FIND), or empty.
    """

    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    birth_date: str = ""
    sex: str = ""
    study_date: str = ""
    study_time: str = ""
    study_id: str = ""
    study_description: str = ""
    accession_number: str = ""
    requested_procedure_id: str = ""
    requested_procedure_description: str = ""
    referring_physician: str = ""
    order_source: str = ""

    @property
    def patient_key(self) -> str | None:
        """Opaque key of the patient: equal for equal issuer and ID; None without an ID.

        What is written where no ID is known, as ``ANON`` or ``000``, is none.
        """
        letters = "".join(each for each in self.patient_id.casefold() if each.isalnum())
        if not letters.strip("0") or letters in _NOBODY:
            return None
        text = f"{len(self.issuer_of_patient_id)}:{self.issuer_of_patient_id}{self.patient_id}"
        return hashlib.sha256(text.encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierScore:
    """An earlier result of the same patient, from our database or from a report in the PACS.

    ``slices_used`` and ``model`` (``hipscore.change.model_name``) decide whether two results
    may be compared. Hips that were not scored then are absent from ``hips``. ``sr_class_uid``
    and ``sr_series_uid`` say where the report belongs, so that another one can refer to it;
    empty where that is not known.
    """

    study_instance_uid: str
    sr_instance_uid: str
    study_date: str
    unet_score: float
    hips: Mapping[Side, EarlierHip]
    model: str
    source: str
    sr_class_uid: str = ""
    sr_series_uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierHip:
    """One hip of an :class:`EarlierScore`."""

    unet_score: float
    slices_used: int
    mean_ratio: float | None = None
    whole_volume_index: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a peer answered to one delivery. ``status`` is the DIMSE or HTTP status, if any.

    ``unreachable``: there was no association, or no answer over it until the timeout
    (``silent``), whatever was to be sent. ``unsupported``: it takes no object of this SOP
    class. ``comment`` is the peer's own text and may name a patient: to be shown, never
    stored or logged.
    """

    delivered: bool
    retry: bool
    status: int | None
    text: str
    unreachable: bool = False
    silent: bool = False
    unsupported: bool = False
    comment: str = ""
