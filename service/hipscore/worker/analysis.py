"""The analysis of one job: claim, read, analyse, report, store, finish."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from hipscore import __version__, lifecycle, pipeline, routing
from hipscore.domain import Artifact, ModelCard, Segmenter, Transient
from hipscore.header import read_header, read_image
from hipscore.keeping.rules import destinations
from hipscore.lease import token
from hipscore.lifecycle import JobState
from hipscore.reporting import ReportContext, SopReference, assessed, uids
from hipscore.reporting.result import result_json
from hipscore.spool import Spool
from hipscore.store import engine as database
from hipscore.store import jobs, retention, together
from hipscore.store.binding import rebind
from hipscore.store.jobs import StoredArtifact
from hipscore.store.moves import LeaseLost, NotFound
from hipscore.store.tables import ArtifactRow, Job, Series
from hipscore.telemetry import Stopwatch
from hipscore.worker import orders
from hipscore.worker.bench import (
    Bench,
    announce_deliveries,
    describe,
    now_utc,
    term,
    trace,
)

#: seconds before a result is stored again when the database would not take it
FINISH_PAUSES_S = (0.2, 1.0, 3.0)

log = logging.getLogger(__name__)


def analyse(job_id: int, at: Bench) -> None:
    """Do one job, if it is due and nobody else holds it."""
    segmenter = at.segmenter
    if segmenter is None:
        log.error("job %d is left alone: this worker has no networks", job_id)
        return
    lease = token()
    watch = Stopwatch()
    try:
        with database.transaction(at.sessions) as session:
            job = jobs.claim(job_id, lease=lease, **term(at), session=session)
    except (Transient, SQLAlchemyError, NotFound) as error:
        log.warning("job %d cannot be claimed: %s", job_id, describe(error))
        return
    if job is None:
        return
    started = time.perf_counter()
    try:
        job = _bound(job, lease, segmenter.card, at)
        ids, outcome = _perform(job, lease, watch, segmenter, at)
    except LeaseLost as lost:
        log.warning("%s", lost)
    except Exception as error:  # noqa: BLE001 - whatever went wrong belongs to this job alone
        _give_up(job, lease, error, at)
    else:
        announce_deliveries(ids, at, remember=False)
        spent = time.perf_counter() - started
        log.info("job %d %s in %.2fs: %s", job_id, outcome, spent, watch)


def _perform(
    job: Job, lease: str, watch: Stopwatch, segmenter: Segmenter, at: Bench
) -> tuple[list[int], str]:
    """Analyse, report, store, finish. Returns ids of deliveries to announce, and the outcome."""
    stage = _renewing(job, lease, watch, at)
    with watch.stage("read"), database.transaction(at.sessions) as session:
        retention.require_images(job.id, session=session)
        sources = jobs.instances(job.id, session=session)
        series = session.get_one(Series, job.series_id)
        earlier = jobs.predecessor(job.id, session=session)
    with stage("read"):
        images = [read_image(at.spool.read(each.spool_key, each.sha256)) for each in sources]
        predecessor = None if earlier is None else _reference(earlier, at)
    options = pipeline.Options(
        min_head_area_mm2=at.settings.min_head_area_mm2,
        wanted=series.match_rule != routing.EXPLAINED,
    )
    with orders.asking(job, series, images, at) as background:
        analysis = pipeline.analyse(images, segmenter, options=options, stage=stage)
        with stage("orders"):
            known = background()
    # without a volume the series was declined before any network was asked
    engine = None if analysis.volume is None else segmenter.engine
    context = ReportContext(
        job_key=job.key,
        created_at=now_utc().astimezone(),  # DICOM times are local (PS3.5 6.2)
        software_version=__version__,
        predecessor=predecessor,
        device_name=at.settings.ae_title,
        engine=engine,
        identity=known.identity,
        earlier=known.earlier,
        priority_score=at.settings.priority_score,
        priority_rise=at.settings.priority_rise,
    )
    receivers = [str(each) for each in destinations(at.settings, at.rules)]
    artifacts = pipeline.report(
        analysis,
        segmenter.card,
        context=context,
        kinds=routing.built(at.rules, receivers),
        stage=stage,
    )
    result = result_json(
        study_uid=str(images[0].StudyInstanceUID),
        series_uid=str(images[0].SeriesInstanceUID),
        status="scored" if analysis.findings.scored else "not_scorable",
        findings=analysis.findings,
        card=segmenter.card,
        engine=engine,
        created_at=context.created_at,
        supersedes=None if predecessor is None else predecessor.sop_instance_uid,
        assessment=assessed(analysis.findings, segmenter.card, context),
    )
    with stage("store"):
        stored = [_spooled(artifact, at.spool) for artifact in artifacts]

    def finish() -> list[int]:
        with database.transaction(at.sessions) as session:
            opened = jobs.finish(
                job.id,
                lease=lease,
                state=JobState.ANALYSED if analysis.findings.scored else JobState.NOT_SCORABLE,
                result=result,
                artifacts=stored,
                destinations=receivers,
                travels=lambda destination, kind: routing.travels(
                    at.rules, series.match_rule, destination, kind, came=_came(series)
                ),
                timings={name: round(spent, 4) for name, spent in watch.seconds.items()},
                engine=None if engine is None else asdict(engine),
                now=now_utc(),
                session=session,
            )
            return together.leading(opened, session=session)

    ids = _persistently(finish)
    reason = analysis.findings.reason
    return ids, "scored" if reason is None else f"not scorable ({reason.code})"


def _persistently(finish: Callable[[], list[int]]) -> list[int]:
    """Try again after a moment: a deadlock or a restart shall not cost the analysis."""
    for pause in FINISH_PAUSES_S:
        try:
            return finish()
        except Transient as error:
            log.warning("a result is not stored yet: %s", describe(error))
            time.sleep(pause)
    return finish()


def _came(series: Series) -> routing.Came:
    return routing.Came(
        calling_aet=series.calling_aet, called_aet=series.called_aet, peer=series.peer
    )


def _renewing(job: Job, lease: str, watch: Stopwatch, at: Bench) -> pipeline.Stage:
    """Stage hook that times, and renews the lease once more than half of it is used."""
    half = at.settings.lease_seconds / 2
    renewed = time.monotonic()

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        nonlocal renewed
        if time.monotonic() - renewed > half:
            until = term(at)["lease_until"]
            try:
                with database.transaction(at.sessions) as session:
                    jobs.renew(job.id, lease=lease, lease_until=until, session=session)
                renewed = time.monotonic()
            except (Transient, SQLAlchemyError) as error:
                # The next stage tries again; finish() decides whether the result counts.
                log.warning("lease of job %d not renewed: %s", job.id, describe(error))
        with watch.stage(name):
            yield

    return stage


def _reference(document: ArtifactRow, at: Bench) -> SopReference:
    """Where an earlier SR belongs, from its own header, or from its row if it was purged."""
    if document.purged_at is not None:
        with database.transaction(at.sessions) as session:
            earlier = session.get_one(Job, document.job_id)
            study = session.get_one(Series, earlier.series_id).study_instance_uid
        return SopReference(
            sop_class_uid=str(document.sop_class_uid),
            sop_instance_uid=str(document.sop_instance_uid),
            series_instance_uid=uids.derive(earlier.key, "sr", "series"),  # as reporting does
            study_instance_uid=study,
        )
    header = read_header(at.spool.read(document.spool_key, document.sha256))
    return SopReference(
        sop_class_uid=header.sop_class_uid,
        sop_instance_uid=header.sop_instance_uid,
        series_instance_uid=header.series_instance_uid,
        study_instance_uid=header.study_instance_uid,
    )


def _spooled(artifact: Artifact, spool: Spool) -> StoredArtifact:
    stored = spool.put(artifact.data)
    return StoredArtifact(
        kind=artifact.kind,
        number=artifact.number,
        media_type=artifact.media_type,
        spool_key=stored.key,
        sha256=stored.sha256,
        size=stored.size,
        sop_class_uid=artifact.sop_class_uid,
        sop_instance_uid=artifact.sop_instance_uid,
    )


def _bound(job: Job, lease: str, card: ModelCard, at: Bench) -> Job:
    """The job, bound to our bundle if it was opened for another one."""
    if job.bundle_sha256 == card.sha256 and job.bundle_id == card.id:
        return job
    with database.transaction(at.sessions) as session:
        bound = rebind(
            job.id,
            lease=lease,
            bundle_id=card.id,
            bundle_version=card.version,
            bundle_sha256=card.sha256,
            now=now_utc(),
            session=session,
        )
    log.warning(
        "job %d was opened for bundle %s %s and is analysed with %s %s",
        job.id,
        job.bundle_id,
        job.bundle_version,
        card.id,
        card.version,
    )
    return bound


def _give_up(job: Job, lease: str, error: Exception, at: Bench) -> None:
    """Wait for another attempt after something transient, else FAILED."""
    again = isinstance(error, Transient) and job.attempts < at.settings.max_attempts
    now = now_utc()
    try:
        with database.transaction(at.sessions) as session:
            if again:
                later = now + timedelta(seconds=lifecycle.backoff(job.attempts))
                jobs.postpone(
                    job.id,
                    lease=lease,
                    error=describe(error),
                    next_attempt_at=later,
                    now=now,
                    session=session,
                )
            else:
                purged = isinstance(error, retention.ImagesPurged)
                jobs.fail(
                    job.id,
                    lease=lease,
                    error=str(error) if purged else describe(error),
                    reason_code=retention.IMAGES_PURGED if purged else None,
                    now=now,
                    session=session,
                )
    except (LeaseLost, Transient, SQLAlchemyError) as second:
        # The lease runs out by itself and the reaper takes the job back.
        log.warning("job %d could not be put back: %s", job.id, describe(second))
    if again:
        log.warning("job %d waits for attempt %d: %s", job.id, job.attempts + 1, describe(error))
    else:
        log.error("job %d failed: %s (%s)", job.id, describe(error), trace(error))
