"""Withdrawing a result: what tells of it is built and kept, then all changes in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from pydicom.dataset import Dataset
from sqlalchemy.orm import Session, sessionmaker

from hipscore import __version__
from hipscore.domain import ArtifactKind, StudyIdentity, Transient
from hipscore.header import read_image
from hipscore.reporting import ReportContext, SopReference, oru, repair, source, uids
from hipscore.reporting.rejection import Why, build_rejection
from hipscore.reporting.retraction import build_retraction
from hipscore.spool import Corrupt, Spool
from hipscore.store import engine as database
from hipscore.store import studies, withdrawal
from hipscore.store.jobs import StoredArtifact
from hipscore.store.retracting import RETRACTION
from hipscore.store.withdrawal import Abroad, Moved

#: how often to look again when something was sent in the middle of it
_TRIES = 10

log = logging.getLogger(__name__)


def withdraw(
    job_id: int,
    why: Why,
    *,
    sessions: sessionmaker[Session],
    spool: Spool,
    device_name: str,
    now: datetime,
    beside: Callable[[Session], None] = lambda _: None,
) -> list[int]:
    """Retract the result of a job here and wherever it went.

    DICOM destinations get a note, HL7 receivers a message. ``beside`` is done in the
    transaction that withdraws the result, or not at all.

    Returns
    -------
    list of int
        Ids of the deliveries of both, to be announced; empty where nothing had gone.

    Raises
    ------
    hipscore.lifecycle.IllegalMove
        If the job has no result, or it is withdrawn already.
    hipscore.store.moves.NotFound
        If there is no such job.
    hipscore.domain.Transient
        If the database or the disk cannot be used, or results go out faster than this looks.
    """
    for _ in range(_TRIES):
        with database.transaction(sessions) as session:
            seen = withdrawal.abroad(job_id, session=session)
            row = studies.by_uid(seen.study_instance_uid, session=session)
            whose = StudyIdentity() if row is None else studies.of(row)
        context = ReportContext(
            job_key=seen.job_key,
            created_at=now.astimezone(),  # DICOM times are local (PS3.5 6.2)
            software_version=__version__,
            device_name=device_name,
            identity=whose,
        )
        note = _note(seen, why, context, spool)
        message = _message(seen, why, context, spool)
        try:
            with database.transaction(sessions) as session:
                ids = withdrawal.withdraw(
                    job_id,
                    reason=why.value,
                    seen=seen,
                    note=note,
                    message=message,
                    now=now,
                    session=session,
                )
                beside(session)
        except Moved:
            continue
        log.info("job %d: result withdrawn (%s)", job_id, why.value)
        return ids
    msg = f"results of job {job_id} are being sent at this moment; try again"
    raise Transient(msg)


def _note(seen: Abroad, why: Why, context: ReportContext, spool: Spool) -> StoredArtifact | None:
    if not seen.objects:
        return None
    rejected = [
        SopReference(
            sop_class_uid=str(row.sop_class_uid),
            sop_instance_uid=str(row.sop_instance_uid),
            # as reporting does; both forms of the report are of one series
            series_instance_uid=uids.derive(
                seen.job_key, _SERIES.get(row.kind, row.kind.value), "series"
            ),
            study_instance_uid=seen.study_instance_uid,
        )
        for row in seen.objects
    ]
    note = build_rejection(_header(seen, context.identity, spool), rejected, why, context)
    kept = spool.put(source.to_bytes(note))
    return StoredArtifact(
        kind=ArtifactKind.REJECTION,
        media_type="application/dicom",
        spool_key=kept.key,
        sha256=kept.sha256,
        size=kept.size,
        sop_class_uid=str(note.SOPClassUID),
        sop_instance_uid=str(note.SOPInstanceUID),
    )


def _message(seen: Abroad, why: Why, context: ReportContext, spool: Spool) -> StoredArtifact | None:
    if not seen.receivers:
        return None
    retraction = build_retraction(_original(seen, context, spool), why, context)
    kept = spool.put(retraction)
    return StoredArtifact(
        kind=ArtifactKind.ORU,
        number=RETRACTION,
        media_type=oru.MEDIA_TYPE,
        spool_key=kept.key,
        sha256=kept.sha256,
        size=kept.size,
    )


def _original(seen: Abroad, context: ReportContext, spool: Spool) -> bytes:
    """The message that went, or one with its order and its codes where that was purged."""
    if seen.message is not None and seen.message.purged_at is None:
        try:
            return spool.read(seen.message.spool_key, seen.message.sha256)
        except (Corrupt, Transient) as error:
            log.warning("the message is not readable (%s); it is taken back without", error)
    header = _header(seen, context.identity, spool)
    header.SeriesInstanceUID = seen.series_instance_uid
    return oru.build_bare(header, seen.sides, context)


_SERIES = {ArtifactKind.SR_FALLBACK: ArtifactKind.SR.value}


def _header(seen: Abroad, whose: StudyIdentity, spool: Spool) -> Dataset:
    """A header of the study: that of our report, or of what is known where that was purged."""
    if seen.report is not None and seen.report.purged_at is None:
        try:
            return read_image(spool.read(seen.report.spool_key, seen.report.sha256))
        except (Corrupt, Transient) as error:
            log.warning("the report is not readable (%s); its note is made without", error)
    header = Dataset()
    header.SpecificCharacterSet = repair.UTF_8
    header.StudyInstanceUID = seen.study_instance_uid
    for keyword, value in (
        ("PatientName", whose.patient_name),
        ("PatientID", whose.patient_id),
        ("IssuerOfPatientID", whose.issuer_of_patient_id),
        ("PatientBirthDate", whose.birth_date),
        ("PatientSex", whose.sex),
        ("StudyDate", whose.study_date),
        ("StudyTime", whose.study_time),
        ("StudyID", whose.study_id),
        ("StudyDescription", whose.study_description),
        ("AccessionNumber", whose.accession_number),
        ("ReferringPhysicianName", whose.referring_physician),
    ):
        setattr(header, keyword, value)
    return header
