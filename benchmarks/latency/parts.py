"""The steps nobody can leave out, each timed alone in a warm process.

Decoding the images, both networks on the pictures of the series, one SEG and one SR with
their bytes, and the C-STORE of both over an association that is already open.
"""

from __future__ import annotations

import gc
import io
import os
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE

from benchmarks.recorder import Recorder
from hipscore import __version__, inference, pipeline
from hipscore.addresses import Peer
from hipscore.domain import (
    Artifact,
    ArtifactKind,
    Outcome,
)
from hipscore.header import read_image
from hipscore.keeping.networks import configured
from hipscore.pacs import association as pacs
from hipscore.reporting import ReportContext
from hipscore.settings import Settings
from hipscore.telemetry import Stopwatch

#: the steps in order
STEPS = ("decode", "inference, both networks", "SEG", "SR", "send SEG and SR")


class Parts:
    """Times the steps for one series after the other, in this process."""

    def __init__(self, peer: str) -> None:
        self._peer = Peer.parse(peer)
        self._networks = configured(
            Settings(), inference.shipped_bundle(), threads=len(os.sched_getaffinity(0))
        )
        # as in the service: what is loaded by now is no garbage to look for
        gc.collect()
        gc.freeze()

    @property
    def engine(self) -> str:
        """What computes the networks."""
        return str(self._networks.engine)

    def measure(self, images: Sequence[Dataset], key: str) -> dict[str, float]:
        """Seconds of each of :data:`STEPS`; ``key`` makes the UIDs of what is built."""
        files = [_part10(image) for image in images]
        watch = Stopwatch()
        with watch.stage("decode"):
            decoded = [read_image(data) for data in files]
            for each in decoded:
                _ = each.pixel_array
        recorder = Recorder(networks=self._networks)
        analysis = pipeline.analyse([read_image(data) for data in files], recorder)
        if not analysis.findings.scored:
            raise SystemExit(f"the series is not scored: {analysis.findings.reason}")
        with watch.stage("inference, both networks"):
            recorder.again()
        context = ReportContext(
            job_key=key, created_at=datetime.now(UTC).astimezone(), software_version=__version__
        )
        built = Stopwatch()
        artifacts = pipeline.report(
            analysis,
            recorder.card,
            context=context,
            kinds=frozenset({ArtifactKind.SEG, ArtifactKind.SR}),
            stage=built.stage,
        )
        steps = {**watch.seconds, "SEG": built.seconds["seg"], "SR": built.seconds["sr"]}
        return {**steps, "send SEG and SR": _send(artifacts, self._peer)}


def _part10(image: Dataset) -> bytes:
    """The file of an image as it lies in the spool."""
    file = io.BytesIO()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _send(artifacts: Sequence[Artifact], peer: Peer) -> float:
    """Seconds to store the objects over an association that is open before the clock starts."""
    entity = AE(ae_title="PARTS")
    for name in sorted({str(each.sop_class_uid) for each in artifacts}):
        entity.add_requested_context(name, ExplicitVRLittleEndian)
    opened = pacs.associate(peer, entity.requested_contexts, "PARTS", pacs.DEFAULT_TIMEOUTS)
    if isinstance(opened, Outcome):
        raise SystemExit(opened.text)
    with tempfile.TemporaryDirectory(prefix="parts-") as folder:
        paths = [Path(folder) / f"{number}.dcm" for number in range(len(artifacts))]
        for path, artifact in zip(paths, artifacts, strict=True):
            path.write_bytes(artifact.data)
        begun = time.perf_counter()
        statuses = [opened.send_c_store(path).get("Status") for path in paths]
        spent = time.perf_counter() - begun
    pacs.leave(opened)
    if any(status != 0 for status in statuses):
        raise SystemExit(f"Orthanc answered {statuses}")
    return spent
