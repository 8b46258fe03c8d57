"""The promise, checked: nothing acknowledged is lost, every series has its one outcome."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState, JobState, SeriesState
from hipscore.spool import Corrupt, Spool
from hipscore.store import engine as database
from hipscore.store import ledger
from hipscore.store.tables import ArtifactRow, Delivery, Instance, Job, JobInstance, Series
from tests.faults.sender import Expected, Scan
from tests.faults.stage import Stage

_REPORTS = (ArtifactKind.SR, ArtifactKind.SR_FALLBACK)
_UNFINISHED = (JobState.QUEUED, JobState.ANALYSING)


@dataclass(slots=True, kw_only=True)
class Round:
    """One fault (or several at once), the series it may have hurt, and what became of them.

    ``repairs`` is what the fault itself did in an operator's place, series by series in all;
    ``unplanned`` what was done beyond that.
    Times are of the monotonic clock, s.
    """

    number: int
    kind: str
    faults: int = 1
    scans: list[Scan] = field(default_factory=list)
    repairs: int = 0
    unplanned: int = 0
    over_at: float = 0.0
    settled_at: float | None = None
    lost: list[str] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)

    @property
    def violations(self) -> list[str]:
        """Every broken promise, in words."""
        return [*self.lost, *self.unsettled, *self.duplicates]

    @property
    def seconds(self) -> float | None:
        """From the end of the fault until every series of the round had its outcome."""
        return None if self.settled_at is None else max(0.0, self.settled_at - self.over_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What the database says about one series."""

    series: Series
    images: dict[str, Instance]
    jobs: list[Job]
    artifacts: list[ArtifactRow]
    deliveries: list[Delivery]
    analysed: dict[int, int]
    reopened: int
    retried: int


def settled(round_: Round, stage: Stage) -> bool:
    """Whether every series of the round has come to rest. A database that is down says no."""
    try:
        with database.readers(stage.engine)() as session:
            return all(_at_rest(_read(scan, session), scan) for scan in round_.scans)
    except SQLAlchemyError:
        return False


def _at_rest(found: _Outcome | None, scan: Scan) -> bool:
    if found is None:
        return not scan.acknowledged
    if scan.expected is Expected.IGNORED:
        return found.series.state is SeriesState.IGNORED
    final = DeliveryState.COMMITTED
    return (
        found.series.state is SeriesState.MATCHED
        and len(found.jobs) >= scan.reports
        and all(job.state not in _UNFINISHED for job in found.jobs)
        and all(
            each.state in {final, DeliveryState.REFUSED, DeliveryState.EXHAUSTED}
            for each in found.deliveries
        )
    )


def judge(round_: Round, stage: Stage) -> None:
    """Check every promise for every series of the round and note what is broken."""
    round_.lost, round_.unsettled, round_.duplicates, round_.unplanned = [], [], [], 0
    with database.readers(stage.engine)() as session:
        for scan in round_.scans:
            found = _read(scan, session)
            _judge_images(scan, found, round_, stage)
            if found is None:
                if scan.acknowledged:
                    round_.unsettled.append(f"series {scan.series_uid} is not in the database")
                continue
            _judge_outcome(scan, found, round_)
            _judge_results(scan, found, round_, stage)


def explain(round_: Round, stage: Stage) -> str:
    """What somebody needs who wants to know why a round failed."""
    parts = [f"round {round_.number} ({stage.kind}, {round_.kind}):"]
    parts += [f"  {each}" for each in round_.violations]
    for scan in round_.scans:
        if any(scan.series_uid in each for each in round_.violations):
            parts.append(stage.hipscore("why", scan.series_uid))
    for name in stage.keeper.names():
        parts.append(f"--- {name}.log\n{stage.keeper.tail(name)}")
    parts.append(f"files are kept in {stage.root}")
    return "\n".join(parts)


def _read(scan: Scan, session: Session) -> _Outcome | None:
    series = session.scalars(
        select(Series).where(Series.series_instance_uid == scan.series_uid)
    ).one_or_none()
    if series is None:
        return None
    images = session.scalars(select(Instance).where(Instance.series_id == series.id)).all()
    jobs = session.scalars(select(Job).where(Job.series_id == series.id).order_by(Job.id)).all()
    ids = [job.id for job in jobs]
    artifacts = session.scalars(
        select(ArtifactRow).where(ArtifactRow.job_id.in_(ids)).order_by(ArtifactRow.id)
    ).all()
    deliveries = session.scalars(
        select(Delivery).where(Delivery.artifact_id.in_([each.id for each in artifacts]))
    ).all()
    events = ledger.of_series(scan.series_uid, session=session)
    counts = select(JobInstance.job_id, func.count()).where(JobInstance.job_id.in_(ids))
    analysed = session.execute(counts.group_by(JobInstance.job_id))
    return _Outcome(
        series=series,
        images={image.sop_instance_uid: image for image in images},
        jobs=list(jobs),
        artifacts=list(artifacts),
        deliveries=list(deliveries),
        analysed={row[0]: row[1] for row in analysed},
        reopened=sum(each.what == "image" for each in events),
        retried=sum(each.what == "retry" for each in events),
    )


def _judge_images(scan: Scan, found: _Outcome | None, round_: Round, stage: Stage) -> None:
    """Every acknowledged image is in the database, and its bytes in the spool."""
    spool = Spool(stage.data / "spool")
    for uid, sent in scan.acknowledged.items():
        row = None if found is None else found.images.get(uid)
        if row is None:
            round_.lost.append(f"{scan.series_uid}: acknowledged image {uid} has no row")
            continue
        try:
            kept = spool.read(row.spool_key, row.sha256)
        except Corrupt as error:
            round_.lost.append(f"{scan.series_uid}: acknowledged image {uid}: {error}")
            continue
        if not kept.endswith(sent):
            round_.lost.append(f"{scan.series_uid}: image {uid} is not what was acknowledged")


def _judge_outcome(scan: Scan, found: _Outcome, round_: Round) -> None:
    """One job for each set of images, in the state the series must come to, none repaired."""
    note = round_.unsettled.append
    if not _at_rest(found, scan):
        jobs = [f"{job.state.value} after {job.attempts}" for job in found.jobs]
        note(
            f"{scan.series_uid} is not at rest: {found.series.state.value}, jobs {jobs}, "
            f"deliveries {[each.state.value for each in found.deliveries]}"
        )
    if found.retried > round_.repairs:
        round_.unplanned += found.retried - round_.repairs
        note(f"{scan.series_uid}: {found.retried} operator actions in the ledger")
    if scan.expected is Expected.IGNORED:
        if found.jobs:
            note(f"{scan.series_uid}: an ignored series has a job")
        return
    # A sender that is kept waiting for longer than the quiet period continues a closed series.
    if len(found.jobs) > 1 + found.reopened:
        round_.duplicates.append(
            f"{scan.series_uid}: {len(found.jobs)} jobs, reopened {found.reopened} times"
        )
    round_.unsettled += _failures(scan, found)


def _failures(scan: Scan, found: _Outcome) -> Iterator[str]:
    """What failed, and whether the last job is about all images and came to its end."""
    for job in found.jobs:
        if job.state is JobState.FAILED:
            yield f"{scan.series_uid}: job {job.id} is FAILED: {job.error}"
    for job in found.jobs[-1:]:
        if job.state.value != scan.expected.value:
            yield f"{scan.series_uid}: job {job.id} is {job.state.value}: {job.reason_code}"
        if found.analysed.get(job.id) != len(scan.acknowledged):
            yield f"{scan.series_uid}: job {job.id} has not all of the acknowledged images"
    for each in found.deliveries:
        if each.state in {DeliveryState.REFUSED, DeliveryState.EXHAUSTED}:
            yield f"{scan.series_uid}: delivery {each.id} is {each.state.value}: {each.error}"


def _judge_results(scan: Scan, found: _Outcome, round_: Round, stage: Stage) -> None:
    """Exactly the objects of the jobs are in the PACS, and each with the bytes built once."""
    held = [
        dcmread(BytesIO(stage.orthanc.file(each)))
        for each in stage.orthanc.find("Instance", StudyInstanceUID=scan.study_uid)
    ]
    spool = Spool(stage.data / "spool")
    by_uid = {str(each.SOPInstanceUID): each for each in held}
    known: set[str] = set()
    earlier: str | None = None
    for job in found.jobs:
        built = [each for each in found.artifacts if each.job_id == job.id]
        seg = [each for each in built if each.kind is ArtifactKind.SEG]
        reports = [each for each in built if each.kind in _REPORTS]
        # too few slices for a score may still be segmented
        if len(seg) > 1 or (job.state is JobState.ANALYSED and not seg):
            round_.unsettled.append(
                f"{scan.series_uid}: job {job.id}, {job.state.value}, has {len(seg)} SEG"
            )
        for kind, choice in (("SEG", seg), ("SR", reports)):
            there = [each for each in choice if each.sop_instance_uid in by_uid]
            known.update(str(each.sop_instance_uid) for each in choice)
            if choice and not there:
                round_.unsettled.append(f"{scan.series_uid}: no {kind} of job {job.id} in the PACS")
            if len(there) > 1:
                round_.duplicates.append(
                    f"{scan.series_uid}: {len(there)} {kind} of job {job.id} in the PACS"
                )
            for each in there:
                kept = dcmread(BytesIO(spool.read(each.spool_key, each.sha256)))
                if kept != by_uid[str(each.sop_instance_uid)]:
                    round_.duplicates.append(
                        f"{scan.series_uid}: {kind} of job {job.id} is another one in the PACS"
                    )
                if kind == "SR":
                    named = _predecessors(by_uid[str(each.sop_instance_uid)])
                    if named != ([earlier] if earlier else []):
                        round_.unsettled.append(
                            f"{scan.series_uid}: report of job {job.id} supersedes {named}, "
                            f"not {earlier}"
                        )
        main = [each for each in reports if each.kind is ArtifactKind.SR]
        earlier = str(main[0].sop_instance_uid) if main else earlier
    round_.duplicates += [
        f"{scan.series_uid}: {each.Modality} {uid} in the PACS belongs to no job"
        for uid, each in by_uid.items()
        if uid not in known
    ]
    round_.duplicates += [
        f"{scan.series_uid}: {len(digests)} different objects were sent as {uid}"
        for uid, digests in _several(stage, known)
    ]


def _several(stage: Stage, uids: set[str]) -> list[tuple[str, set[str]]]:
    pairs = ((uid, stage.front.accepted.get(uid, set())) for uid in uids)
    return [(uid, digests) for uid, digests in pairs if len(digests) > 1]


def _predecessors(report: Dataset) -> list[str]:
    """SOP Instance UIDs in Predecessor Documents Sequence (PS3.3 C.17.2)."""
    return [
        str(item.ReferencedSOPInstanceUID)
        for study in report.get("PredecessorDocumentsSequence", ())
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]
