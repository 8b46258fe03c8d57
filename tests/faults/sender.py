"""The modality: series whose every acknowledged image is remembered, and sent until it is."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from enum import StrEnum

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode
from pynetdicom.events import Event

from hipscore.phantom import Burden, synthesise
from hipscore.phantom.dicom import to_datasets
from hipscore.phantom.study import Phantom, derive_uid
from tests.processes import LOOPBACK

SUCCESS = 0x0000
#: seconds after which a modality would page somebody
PATIENCE_SECONDS = 240.0
_PAUSE_SECONDS = 0.3


class Expected(StrEnum):
    """What must become of a series."""

    SCORED = "ANALYSED"
    NOT_SCORABLE = "NOT_SCORABLE"
    IGNORED = "IGNORED"


@dataclass(slots=True, kw_only=True)
class Scan:
    """One series: its images, and the encoded data sets that were answered with success.

    ``reports`` is how many reports there must be in the end: one more for each late image.
    """

    study_uid: str
    series_uid: str
    expected: Expected
    images: list[Dataset]
    reports: int = 1
    acknowledged: dict[str, bytes] = field(default_factory=dict)

    def missing(self) -> list[Dataset]:
        """Images not acknowledged yet."""
        return [each for each in self.images if each.SOPInstanceUID not in self.acknowledged]


@functools.cache
def _phantom() -> Phantom:
    """One small person for all: what is tested is not the score."""
    return synthesise(
        seed=1, burden=Burden.MODERATE, slices=9, rows=96, slice_mm=5.0, supersampling=1
    )


def scan(name: str, expected: Expected = Expected.SCORED) -> Scan:
    """A small series with UIDs of its own, which follow from ``name``."""
    study, series = derive_uid("faults", name, "study"), derive_uid("faults", name, "series")
    images = to_datasets(
        _phantom(),
        study_uid=study,
        series_uid=series,
        patient_id=f"FAULT-{series[-12:]}",
    )
    for image in images:
        if expected is Expected.NOT_SCORABLE:  # matched by the rules, and not to be analysed
            image.RescaleSlope, image.RescaleIntercept = 0, 0
        if expected is Expected.IGNORED:
            image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return Scan(study_uid=study, series_uid=series, expected=expected, images=images)


def altered(image: Dataset) -> Dataset:
    """The image with other pixels under the same SOP Instance UID."""
    other = deepcopy(image)
    other.PixelData = bytes(len(image.PixelData))
    return other


def encoded(image: Dataset) -> bytes:
    """The data set as it goes over the wire."""
    data = encode(image, is_implicit_vr=False, is_little_endian=True)
    if data is None:
        raise ValueError(f"{image.SOPInstanceUID} cannot be encoded")
    return data


class Modality:
    """A Storage SCU that does not give up."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(
        self,
        scan: Scan,
        images: Sequence[Dataset] | None = None,
        *,
        release: bool = True,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """Send until every image is acknowledged, over as many associations as it takes.

        With ``release`` false, the last association is aborted, which proves nothing about
        the series: the quiet period has to close it.

        Raises
        ------
        TimeoutError
            If images are not acknowledged after ``patience`` seconds.
        """
        wanted = list(scan.images if images is None else images)
        end = time.monotonic() + patience
        while True:
            left = [each for each in wanted if each.SOPInstanceUID not in scan.acknowledged]
            if not left:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"{len(left)} images of {scan.series_uid} not acknowledged")
            if not self.offer(scan, left, release=release):
                time.sleep(_PAUSE_SECONDS)

    def offer(self, scan: Scan, images: Sequence[Dataset], *, release: bool = True) -> bool:
        """Send over one association; whether all were acknowledged."""
        entity = AE(ae_title="MODALITY")
        entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
        entity.connection_timeout = entity.acse_timeout = 10.0
        entity.dimse_timeout = entity.network_timeout = 45.0
        association = entity.associate(
            LOOPBACK,
            self.port,
            ae_title="HIPSCORE",
            evt_handlers=[(evt.EVT_CONN_OPEN, _without_delay)],
        )
        if not association.is_established:
            return False
        done = 0
        for image in images:
            try:
                answer = association.send_c_store(image)
            except RuntimeError:  # the association ended
                break
            if "Status" not in answer:
                break
            if answer.Status == SUCCESS:
                scan.acknowledged.setdefault(str(image.SOPInstanceUID), encoded(image))
                done += 1
            elif answer.Status >> 8 != 0xA7:
                association.abort()
                raise RuntimeError(f"image refused with 0x{answer.Status:04X}")
        if association.is_established:
            if release and done == len(images):
                association.release()
            else:
                association.abort()
        return done == len(images)

    def send_from_many(self, scan: Scan, associations: int) -> None:
        """The whole series over several associations at once, then what is missing."""
        threads = [
            threading.Thread(target=self._offer_quietly, args=(scan,)) for _ in range(associations)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.send(scan)

    def _offer_quietly(self, scan: Scan) -> None:
        with contextlib.suppress(OSError):
            self.offer(scan, scan.images)


def _without_delay(event: Event) -> None:
    transport = event.assoc.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
