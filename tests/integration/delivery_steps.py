"""Steps the tests of deliveries are told in: a study is analysed, its results are sent."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from hipscore import phantom, pipeline, worker
from hipscore.addresses import Peer
from hipscore.domain import Artifact, ArtifactKind
from hipscore.lifecycle import DeliveryState, JobState
from hipscore.reporting import ReportContext
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import engine, jobs
from hipscore.store.tables import ArtifactRow, Delivery
from tests.integration import shell_steps as steps
from tests.integration import store_steps

NAME = "Secret^Patient"

#: pynetdicom leaves a socket that was refused to the garbage collector
refused_sockets = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <socket\.socket:pytest.PytestUnraisableExceptionWarning"
)


def sent_to(settings: Settings, *peers: str, **more: Any) -> Settings:
    return settings.model_copy(
        update={"destinations": tuple(Peer.parse(peer) for peer in peers), **more}
    )


def artifacts(settings: Settings) -> dict[ArtifactKind, bytes]:
    spool = Spool(settings.data_dir / "spool")
    return {
        row.kind: spool.read(row.spool_key, row.sha256) for row in steps.rows(settings, ArtifactRow)
    }


def study(seed: int = 1, **more: Any) -> tuple[phantom.Phantom, list[Any]]:
    truth = steps.make_phantom(seed)
    return truth, phantom.to_datasets(truth, patient_name=NAME, **more)


def deliver_all(at: worker.Bench, settings: Settings) -> list[Delivery]:
    for row in steps.rows(settings, Delivery):
        worker.deliver(row.id, at)
    rows: list[Delivery] = steps.rows(settings, Delivery)
    return rows


def wake(at: worker.Bench, delivery_id: int) -> None:
    """Time passes: the next attempt is due."""
    with at.sessions.begin() as session:
        session.get_one(Delivery, delivery_id).next_attempt_at = None


@functools.cache
def _objects() -> tuple[Artifact, ...]:
    """SEG, SR and its fallback of one study, made once for all tests."""
    truth, images = study()
    known = steps.knowing((truth, images))
    context = ReportContext(
        job_key="d" * 64,
        created_at=datetime(2026, 3, 14, 9, 30, tzinfo=UTC),
        software_version="1",
    )
    made = pipeline.report(pipeline.analyse(images, known), known.card, context=context)
    return tuple(each for each in made if each.kind is not ArtifactKind.OVERLAY)


@contextlib.contextmanager
def scored(settings: Settings) -> Iterator[worker.Bench]:
    """A bench whose database holds one finished job with a real SEG and SR to deliver."""
    with steps.bench(settings) as at:
        stored = []
        for each in _objects():
            kept = at.spool.put(each.data)
            stored.append(
                jobs.StoredArtifact(
                    kind=each.kind,
                    media_type=each.media_type,
                    spool_key=kept.key,
                    sha256=kept.sha256,
                    size=kept.size,
                    sop_class_uid=each.sop_class_uid,
                    sop_instance_uid=each.sop_instance_uid,
                )
            )
        with engine.transaction(at.sessions) as session:
            job = store_steps.a_job(session=session)
            assert store_steps.claim(job.id, session=session)
            jobs.finish(
                job.id,
                lease="lease-1",
                state=JobState.ANALYSED,
                result={"unet_score": 3.21, "reason": None},
                artifacts=stored,
                destinations=[str(peer) for peer in settings.destinations],
                timings={},
                now=store_steps.NOW,
                session=session,
            )
        yield at


def states(settings: Settings) -> list[DeliveryState]:
    """States of the deliveries, SEG before SR."""
    return [row.state for row in steps.rows(settings, Delivery)]
