"""The way of one analysis through the database, to be rolled back: it warms what is cached.

Composing a statement costs more than running it, and is done once per process. So is the
first connection.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime, timedelta
from typing import Any

from pydicom.uid import MRImageStorage, SegmentationStorage
from sqlalchemy.orm import Session

from hipscore.domain import ArtifactKind, ReceivedInstance
from hipscore.lifecycle import JobState
from hipscore.store import (
    commitment,
    deliveries,
    intake,
    jobs,
    recording,
    retention,
    together,
    waiting,
)
from hipscore.store.recording import Arrival

_WHERE = "REHEARSAL@127.0.0.1:104"
_BUNDLE = {"bundle_id": "rehearsal", "bundle_version": "", "bundle_sha256": "0" * 64}


def play(*, now: datetime, session: Session) -> None:
    """An image arrives, is analysed, and its results are sent. Roll back what is done here."""
    uid = f"2.25.{uuid.uuid4().int}"
    lease, until = uid, now + timedelta(seconds=1)
    held: dict[str, Any] = {"lease": lease, "now": now, "session": session}
    series = recording.record(_arrival(uid), now=now, session=session).series_id
    intake.close(series, "rehearsal", now=now, session=session)
    intake.match(series, matched=True, rule="rehearsal", now=now, session=session)
    job = intake.open_job(series, **_BUNDLE, now=now, session=session)
    jobs.claim(job.id, lease_until=until, **held)
    retention.require_images(job.id, session=session)
    jobs.instances(job.id, session=session)
    jobs.predecessor(job.id, session=session)
    opened = jobs.finish(
        job.id,
        state=JobState.ANALYSED,
        result={},
        artifacts=[_artifact(kind, uid) for kind in (ArtifactKind.SEG, ArtifactKind.SR)],
        destinations=[_WHERE],
        timings={},
        **held,
    )
    together.leading(opened, session=session)
    for delivery_id in opened:
        parcel = deliveries.claim(delivery_id, lease_until=until, **held)
        if parcel is not None:
            together.beside(parcel, now=now, session=session)
            deliveries.sent(delivery_id, status=0, form=parcel.artifact, commit=True, **held)
            waiting.peer_is_back(delivery_id, now=now, session=session)
    deliveries.underway(_WHERE, now, session=session)
    asked = commitment.open_transaction(_WHERE, held_until=until, now=now, session=session)
    if asked is not None:
        commitment.accepted(asked.uid, wait_s=1.0, now=now, session=session)
        commitment.unanswered(asked.uid, session=session)


def _arrival(uid: str) -> Arrival:
    digest = hashlib.sha256(uid.encode()).hexdigest()
    return Arrival(
        instance=ReceivedInstance(
            study_instance_uid=uid,
            series_instance_uid=uid,
            sop_class_uid=MRImageStorage,
            sop_instance_uid=uid,
            transfer_syntax_uid="",
            sha256=digest,
            size=0,
        ),
        spool_key=digest,
        calling_aet="",
        called_aet="",
        peer="",
        association_id=uid,
    )


def _artifact(kind: ArtifactKind, uid: str) -> jobs.StoredArtifact:
    return jobs.StoredArtifact(
        kind=kind,
        media_type="",
        spool_key=uid,
        sha256="0" * 64,
        size=0,
        sop_class_uid=SegmentationStorage,
        sop_instance_uid=uid,
    )
