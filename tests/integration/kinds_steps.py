"""Steps the tests of destinations of every kind are told in: what was made of one study."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from hipscore import pipeline, routing, worker
from hipscore.addresses import destination
from hipscore.domain import Artifact, ArtifactKind
from hipscore.lifecycle import JobState
from hipscore.reporting import ReportContext, oru, uids
from hipscore.settings import Settings
from hipscore.store import engine, jobs
from hipscore.store.tables import ArtifactRow, Delivery
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration.delivery_steps import study

SENT = frozenset({ArtifactKind.SEG, ArtifactKind.SR})


def going_to(settings: Settings, *addresses: str, **more: object) -> Settings:
    found = tuple(destination(each) for each in addresses)
    return settings.model_copy(update={"destinations": found, **more})


@functools.cache
def made() -> tuple[Artifact, ...]:
    """SEG, SR, its fallback, two captures, a PDF and a message of one study."""
    truth, images = study()
    known = steps.knowing((truth, images))
    context = ReportContext(
        job_key="d" * 64,
        created_at=datetime(2026, 3, 14, 9, 30, tzinfo=UTC),
        software_version="1",
    )
    analysis = pipeline.analyse(images, known)
    reports = pipeline.report(analysis, known.card, context=context)
    wanted = (*SENT, ArtifactKind.SR_FALLBACK)
    message = oru.build_oru(images, analysis.findings, known.card, context)
    return (
        *(each for each in reports if each.kind in wanted),
        _stand_in(ArtifactKind.SC, SecondaryCaptureImageStorage, 1),
        _stand_in(ArtifactKind.SC, SecondaryCaptureImageStorage, 2),
        _stand_in(ArtifactKind.PDF, EncapsulatedPDFStorage, 0),
        Artifact(kind=ArtifactKind.ORU, media_type=oru.MEDIA_TYPE, data=message),
    )


def _stand_in(kind: ArtifactKind, sop_class: str, number: int) -> Artifact:
    """An object of this class; what is in it does not matter here."""
    dataset = Dataset()
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = uids.derive("stand-in", kind.value, str(number))
    dataset.PatientName, dataset.PatientID = "Secret^Patient", "1"
    dataset.StudyInstanceUID = uids.derive("stand-in", "study")
    dataset.SeriesInstanceUID = uids.derive("stand-in", kind.value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return Artifact(
        kind=kind,
        media_type="application/dicom",
        data=file.getvalue(),
        sop_class_uid=sop_class,
        sop_instance_uid=str(dataset.SOPInstanceUID),
        number=number,
    )


def superseded(at: worker.Bench) -> int:
    """A late image makes a new job of the first series; it is finished with the same bytes."""
    return finished(at, images=4)


def finished(at: worker.Bench, number: int = 1, images: int = 3) -> int:
    """Open and finish a job with all of it; its id."""
    stored = []
    for each in made():
        kept = at.spool.put(each.data)
        stored.append(
            jobs.StoredArtifact(
                kind=each.kind,
                number=each.number,
                media_type=each.media_type,
                spool_key=kept.key,
                sha256=kept.sha256,
                size=kept.size,
                sop_class_uid=each.sop_class_uid,
                sop_instance_uid=each.sop_instance_uid,
            )
        )
    with engine.transaction(at.sessions) as session:
        job = store_steps.a_job(
            session=session, series=f"{store_steps.SERIES}{number}", images=images
        )
        assert store_steps.claim(job.id, session=session)
        jobs.finish(
            job.id,
            lease="lease-1",
            state=JobState.ANALYSED,
            result={"unet_score": 3.21, "reason": None},
            artifacts=stored,
            destinations=[str(each) for each in at.settings.destinations],
            timings={},
            travels=lambda address, kind: routing.travels(at.rules, None, address, kind),
            now=store_steps.NOW,
            session=session,
        )
        return job.id


@contextlib.contextmanager
def scored(
    settings: Settings,
    *receivers: routing.Receiver,
    artifacts: Mapping[str, frozenset[ArtifactKind]] | None = None,
    jobs: int = 1,
) -> Iterator[worker.Bench]:
    """A bench whose database holds finished jobs, with deliveries as these rules want them."""
    rules = routing.Rules(artifacts=artifacts or {}, receivers=receivers)
    with steps.bench(settings) as plain:
        at = dataclasses.replace(plain, rules=rules)
        for number in range(jobs):
            finished(at, number + 1)
        yield at


def deliver_all(at: worker.Bench) -> list[Delivery]:
    """Deliver what there is, and what is opened by that."""
    done: set[int] = set()
    while new := [row.id for row in deliveries(at) if row.id not in done]:
        for delivery_id in new:
            worker.deliver(delivery_id, at)
        done |= set(new)
    return deliveries(at)


def deliveries(at: worker.Bench) -> list[Delivery]:
    rows: list[Delivery] = steps.rows(at.settings, Delivery)
    return rows


def kinds(at: worker.Bench, rows: Sequence[Delivery]) -> list[ArtifactKind]:
    """What each of them carries."""
    of = {row.id: row.kind for row in steps.rows(at.settings, ArtifactRow)}
    return [of[row.artifact_id] for row in rows]
