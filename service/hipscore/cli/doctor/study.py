"""A synthetic study on the way of every study, through the service that runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from sqlalchemy.orm import Session, sessionmaker

from hipscore import pacs, phantom
from hipscore.addresses import Peer
from hipscore.cli.common import ready_database
from hipscore.cli.doctor.finding import Finding, fault, good, warning
from hipscore.cli.phantom import truth
from hipscore.domain import Transient
from hipscore.lifecycle import JobState
from hipscore.routing import TRIAL_AET
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import engine as database
from hipscore.store import queries, trial
from hipscore.store.queries import JobDetail

#: smaller than a real one: a third of the time, and scored all the same
MATRIX = 256
_FINAL = frozenset({JobState.ANALYSED, JobState.NOT_SCORABLE, JobState.FAILED})


def findings(settings: Settings, *, timeout: int) -> Iterator[Finding]:
    """Send it, wait until it is scored, compare with the truth, and take it away again."""
    seed = uuid4().int % 10_000
    made = phantom.synthesise(seed=seed, rows=MATRIX)
    study = phantom.derive_uid("trial", uuid4().hex)
    images = phantom.to_datasets(
        made,
        study_uid=study,
        series_uid=phantom.derive_uid(study, "series"),
        patient_name="HIPSCORE^TRIAL",
        patient_id="HIPSCORE-TRIAL",
    )
    us = Peer(
        ae_title=settings.ae_title,
        host={"0.0.0.0": "127.0.0.1", "::": "::1"}.get(  # noqa: S104 - a comparison
            settings.dicom_host, settings.dicom_host
        ),
        port=settings.dicom_port,
    )
    with tempfile.TemporaryDirectory(prefix="hipscore-trial-") as folder:
        files = []
        for number, image in enumerate(images, 1):
            path = Path(folder) / f"{number:03}.dcm"
            image.save_as(path, enforce_file_format=True)
            files.append(path)
        began = time.monotonic()
        refused = [
            outcome.text
            for _, outcome in pacs.send_files(us, files, calling_aet=TRIAL_AET)
            if not outcome.delivered
        ]
    if refused:
        yield fault("study", f"not stored: {refused[0]}", "see the listener's log")
        return
    sent = time.monotonic()
    yield good("study", f"{len(images)} images stored in {sent - began:.1f} s")
    with ready_database(settings) as engine:
        try:
            job = _scored(study, sent + timeout, database.readers(engine))
            yield _verdict(job, timeout, time.monotonic() - sent, made)
        finally:
            left = _remove(study, settings, database.sessions(engine))
    if left:
        yield warning("study", f"{left} of its files were left behind", "hipscore purge")
    else:
        yield good("study", "removed again; only the lines in the ledger stay")


def _scored(study: str, until: float, readers: sessionmaker[Session]) -> JobDetail | None:
    """The finished job of the study; None when the time is up."""
    while time.monotonic() < until:
        with database.transaction(readers) as session:
            job = queries.latest_job_of_study(study, session=session)
        if job is not None and job.job.state in _FINAL:
            return job
        time.sleep(0.1)
    return None


def _verdict(job: JobDetail | None, timeout: int, spent: float, made: phantom.Phantom) -> Finding:
    if job is None:
        return fault(
            "study",
            f"no result within {timeout} s",
            "is a worker running (hipscore jobs)? or allow more with --timeout",
        )
    if job.job.state is not JobState.ANALYSED or job.job.result is None:
        state, code = job.job.state.value, job.job.reason_code or job.job.error or ""
        return fault("study", f"{state} {code}".strip(), "see the worker's log")
    found = float(job.job.result["unet_score"])
    true = sum(hip.unet_score or 0.0 for hip in truth(made))
    text = f"scored {spent:.1f} s after its last image: UNet-score {found:.2f}, truth {true:.2f}"
    if job.deliveries:
        return warning(
            "study",
            f"{text}; results of it were queued for {len(job.deliveries)} deliveries",
            "listener and workers run another version; restart them",
        )
    return good("study", text)


def _remove(study: str, settings: Settings, sessions: sessionmaker[Session]) -> int:
    """Take it away; how many of its files could not be deleted."""
    try:
        with database.transaction(sessions) as session:
            keys = trial.remove(study, now=datetime.now(UTC), session=session)
        spool = Spool(settings.data_dir / "spool")
        # nobody else can be putting these bytes: they hold UIDs that were drawn for this trial
        return sum(not spool.discard(key, unless_since=time.time() + 1.0) for key in set(keys))
    except Transient:
        return -1
