"""The tables of the database that is the truth about every series, job and delivery.

Rows carry UIDs, digests, states and times. A name or another identifier of a patient stands
in ``studies`` and in the attributes of work items, and nowhere else: not in the ledger, not
in the audit log. There are no ORM relationships on purpose: nothing loads lazily behind the
caller's back.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    Enum,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState, JobState, SeriesState

BigId = BigInteger().with_variant(Integer(), "sqlite")  # SQLite: only INTEGER autoincrements
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
Uid = String(64)  # PS3.5 table 6.2-1, VR UI
Sha256 = String(64)
Aet = String(16)
Lease = String(96)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time, on SQLite too (which stores it without a zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            msg = f"{value!r} has no time zone; times in the database are aware and in UTC"
            raise ValueError(msg)
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _states(states: type[SeriesState | JobState | DeliveryState], name: str) -> Enum:
    # a CHECK constraint instead of a native type: a new state is then an ordinary migration
    return Enum(states, native_enum=False, create_constraint=True, length=16, name=name)


class Base(DeclarativeBase):
    """Declarative base; constraints have names so that migrations can address them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        dict[str, Any]: Json,
        list[Any]: Json,
    }


def _only(name: str, *columns: str, where: str) -> Index:
    """An index of the few rows of a large table that something is still to be done about."""
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(where))


# ids are never used twice (sqlite_autoincrement): a late message must not hit another row
_AUTOINCREMENT = {"sqlite_autoincrement": True}


class Series(Base):
    """One DICOM series. ``calling_aet`` … ``peer`` are those of its first image."""

    __tablename__ = "series"
    __table_args__ = (
        Index(None, "study_instance_uid", "id"),
        Index(None, "state", "last_received_at"),
        Index(None, "first_received_at"),
        _AUTOINCREMENT,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(Uid)
    series_instance_uid: Mapped[str] = mapped_column(Uid, unique=True)
    state: Mapped[SeriesState] = mapped_column(_states(SeriesState, "state"))
    close_reason: Mapped[str | None] = mapped_column(String(64))
    match_rule: Mapped[str | None] = mapped_column(String(64))
    calling_aet: Mapped[str] = mapped_column(Aet)
    called_aet: Mapped[str] = mapped_column(Aet)
    peer: Mapped[str] = mapped_column(String(255))
    first_received_at: Mapped[datetime]
    last_received_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]


class Study(Base):
    """One study as worklists show it: whose it is, who ordered it, and what came of it.

    The first part is :class:`hipscore.domain.StudyIdentity`, taken from the images when the
    first series closes. The second is the state of the job that speaks for the study, kept by
    :mod:`hipscore.store.summary` in the transaction of every move, so that a page of the
    worklist is one indexed read.

    ``status`` is that of the result JSON, or None while nothing is to be scored.
    ``priority`` is the flag of :func:`hipscore.change.flag`; ``priority_reason`` its sentence.
    """

    __tablename__ = "studies"
    __table_args__ = (
        Index(None, "newest_series_id"),
        Index(None, "status", "newest_series_id"),
        Index(None, "score", "newest_series_id"),
        Index(None, "priority", "newest_series_id"),
        Index(None, "patient_key", "study_date"),
        Index(None, "accession_number"),
        Index(None, "job_id"),
        Index(None, "patient_id"),
        # for LIKE 'DOE%' whatever the collation of the database is
        Index(None, "patient_name", postgresql_ops={"patient_name": "text_pattern_ops"}),
        Index(None, "study_date", "newest_series_id"),
        _AUTOINCREMENT,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(Uid, unique=True)
    newest_series_id: Mapped[int] = mapped_column(ForeignKey("series.id"))

    patient_key: Mapped[str | None] = mapped_column(String(40))
    patient_id: Mapped[str] = mapped_column(String(64), default="")
    issuer_of_patient_id: Mapped[str] = mapped_column(String(64), default="")
    patient_name: Mapped[str] = mapped_column(String(324), default="")
    birth_date: Mapped[str] = mapped_column(String(8), default="")
    sex: Mapped[str] = mapped_column(String(16), default="")
    study_date: Mapped[str] = mapped_column(String(8), default="")
    study_time: Mapped[str] = mapped_column(String(16), default="")
    study_id: Mapped[str] = mapped_column(String(16), default="")
    study_description: Mapped[str] = mapped_column(String(64), default="")
    accession_number: Mapped[str] = mapped_column(String(16), default="")
    requested_procedure_id: Mapped[str] = mapped_column(String(16), default="")
    requested_procedure_description: Mapped[str] = mapped_column(String(64), default="")
    referring_physician: Mapped[str] = mapped_column(String(324), default="")
    order_source: Mapped[str] = mapped_column(String(16), default="")

    status: Mapped[str | None] = mapped_column(String(16))
    reason_code: Mapped[str | None] = mapped_column(String(64))
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    score: Mapped[float | None] = mapped_column(Float)
    score_right: Mapped[float | None] = mapped_column(Float)
    score_left: Mapped[float | None] = mapped_column(Float)
    priority: Mapped[bool] = mapped_column(Boolean, default=False)
    priority_reason: Mapped[str] = mapped_column(String(255), default="")
    updated_at: Mapped[datetime]


class Instance(Base):
    """One SOP instance, exactly as first received; its bytes may be purged, its row stays."""

    __tablename__ = "instances"
    __table_args__ = (
        Index(None, "series_id"),
        Index(None, "association_id"),
        Index(None, "spool_key"),
        _only(
            "ix_instances_open_received_at_series_id",
            "received_at",
            "series_id",
            where="purged_at IS NULL",
        ),
        _AUTOINCREMENT,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"))
    sop_class_uid: Mapped[str] = mapped_column(Uid)
    sop_instance_uid: Mapped[str] = mapped_column(Uid, unique=True)
    transfer_syntax_uid: Mapped[str] = mapped_column(Uid)
    sha256: Mapped[str] = mapped_column(Sha256)
    spool_key: Mapped[str] = mapped_column(String(128))
    size: Mapped[int] = mapped_column(BigInteger)
    instance_number: Mapped[int | None] = mapped_column(BigInteger)  # VR IS may be any int32
    number_of_frames: Mapped[int]
    images_in_acquisition: Mapped[int | None] = mapped_column(BigInteger)
    position_mm: Mapped[list[Any] | None]
    orientation: Mapped[list[Any] | None]
    image_type: Mapped[list[Any]]
    association_id: Mapped[str] = mapped_column(String(64))
    received_at: Mapped[datetime]
    purged_at: Mapped[datetime | None]


class Job(Base):
    """The analysis of a fixed set of images of one series by one model bundle.

    ``key`` is :func:`hipscore.lifecycle.job_key`; ``supersedes_id`` the previous job of
    the series. ``withdrawn_at`` is when an operator retracted its result. ``lease`` and
    ``lease_until`` are set while a worker holds it; ``enqueued_at`` is when a broker message
    was last sent for it. ``engine`` is what ran the networks: provider, precision, version of
    the runtime, device.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("series_id", "instances_digest", "bundle_id", "bundle_sha256"),
        Index(None, "state", "id"),
        Index(None, "state", "next_attempt_at"),
        Index(None, "state", "lease_until"),
        Index(None, "supersedes_id"),
        _AUTOINCREMENT,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    key: Mapped[str] = mapped_column(Sha256, unique=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"))
    instances_digest: Mapped[str] = mapped_column(Sha256)
    bundle_id: Mapped[str] = mapped_column(String(128))
    bundle_version: Mapped[str] = mapped_column(String(64))
    bundle_sha256: Mapped[str] = mapped_column(Sha256)
    supersedes_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    state: Mapped[JobState] = mapped_column(_states(JobState, "state"))
    attempts: Mapped[int]
    lease: Mapped[str | None] = mapped_column(Lease)
    lease_until: Mapped[datetime | None]
    next_attempt_at: Mapped[datetime | None]
    enqueued_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)
    reason_code: Mapped[str | None] = mapped_column(String(64))
    result: Mapped[dict[str, Any] | None]
    timings: Mapped[dict[str, Any] | None]
    engine: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    withdrawn_at: Mapped[datetime | None]


class JobInstance(Base):
    """Which images a job analyses. A late image never changes the set of an older job."""

    __tablename__ = "job_instances"
    __table_args__ = (Index(None, "instance_id"),)

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instances.id"), primary_key=True)


class ArtifactRow(Base):
    """One built output of a job; its bytes lie in the spool under ``spool_key``.

    ``number`` tells several of a kind apart (secondary captures).
    """

    __tablename__ = "artifacts"
    __table_args__ = (
        UniqueConstraint("job_id", "kind", "number"),
        Index(None, "spool_key"),
        Index(None, "sop_instance_uid"),
        _only(
            "ix_artifacts_open_created_at_job_id",
            "created_at",
            "job_id",
            where="purged_at IS NULL AND (sop_class_uid IS NOT NULL OR kind = 'oru')",
        ),
        _AUTOINCREMENT,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    kind: Mapped[ArtifactKind] = mapped_column(
        Enum(
            ArtifactKind,
            native_enum=False,
            create_constraint=True,
            length=16,
            name="kind",
            values_callable=lambda kinds: [kind.value for kind in kinds],
        )
    )
    number: Mapped[int] = mapped_column(default=0, server_default="0")
    media_type: Mapped[str] = mapped_column(String(64))
    spool_key: Mapped[str] = mapped_column(String(128))
    sha256: Mapped[str] = mapped_column(Sha256)
    size: Mapped[int] = mapped_column(BigInteger)
    sop_class_uid: Mapped[str | None] = mapped_column(Uid)
    sop_instance_uid: Mapped[str | None] = mapped_column(Uid)
    created_at: Mapped[datetime]
    purged_at: Mapped[datetime | None]


class Delivery(Base):
    """One artifact on its way to one destination (:func:`hipscore.addresses.destination`).

    ``status`` is the last DIMSE status (PS3.7 annex C) or HTTP status, or None when the peer
    was not reached or speaks HL7. ``form_id`` is the artifact whose bytes went: the report or
    its fallback.

    Storage commitment (PS3.4 J) of a SENT delivery: ``commit_at`` is when to ask for it
    next, None when it is not wanted or not any more; ``commit_attempts`` how often it was
    asked for; ``transaction_uid`` that of the last request since it was sent.
    """

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("artifact_id", "destination"),
        Index(None, "state", "id"),
        Index(None, "state", "next_attempt_at"),
        Index(None, "state", "lease_until"),
        Index(None, "state", "commit_at"),
        Index(None, "transaction_uid"),
        Index(None, "form_id"),
        _only(
            "ix_deliveries_open_id",
            "id",
            # as hipscore.store.outbox.OPEN says it: neither database proves more
            where="state IN ('PENDING', 'SENDING', 'EXHAUSTED')"
            " OR (state IN ('REFUSED') AND form_id IS NULL)"
            " OR (state IN ('SENT') AND commit_at IS NOT NULL)",
        ),
        _AUTOINCREMENT,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    artifact_id: Mapped[int] = mapped_column(ForeignKey("artifacts.id"))
    destination: Mapped[str] = mapped_column(String(320))
    state: Mapped[DeliveryState] = mapped_column(_states(DeliveryState, "state"))
    attempts: Mapped[int]
    lease: Mapped[str | None] = mapped_column(Lease)
    lease_until: Mapped[datetime | None]
    next_attempt_at: Mapped[datetime | None]
    enqueued_at: Mapped[datetime | None]
    status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    form_id: Mapped[int | None] = mapped_column(ForeignKey("artifacts.id"))
    commit_at: Mapped[datetime | None]
    commit_attempts: Mapped[int] = mapped_column(default=0)
    transaction_uid: Mapped[str | None] = mapped_column(Uid)
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class Event(Base):
    """One line of the ledger. Rows are added, and go only with all of their series."""

    __tablename__ = "events"
    __table_args__ = (
        Index(None, "series_id", "id"),
        Index(None, "job_id"),
        Index(None, "delivery_id"),
        _only("ix_events_open_id", "id", where="what IN ('conflict', 'misplaced')"),
        _AUTOINCREMENT,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime]
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"))
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    delivery_id: Mapped[int | None] = mapped_column(ForeignKey("deliveries.id"))
    what: Mapped[str] = mapped_column(String(64))
    from_state: Mapped[str | None] = mapped_column(String(16))
    to_state: Mapped[str | None] = mapped_column(String(16))
    detail: Mapped[dict[str, Any]]


class Tally(Base):
    """So many rows of the table ``what`` came into ``state`` (or, below zero, left it).

    Written by triggers on series, jobs and deliveries; the sum is how many are in the state.
    """

    __tablename__ = "tallies"
    __table_args__ = (_AUTOINCREMENT,)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    what: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    number: Mapped[int] = mapped_column(BigInteger)


class Removal(Base):
    """A series whose rows are being deleted: a trigger lets lines of its ledger go.

    Empty outside of the transactions of :mod:`hipscore.store.forgetting`.
    """

    __tablename__ = "removals"

    series_id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)


class EarlierReport(Base):
    """What a report of ours that lies in the PACS says of an earlier study of a patient.

    ``content`` is :class:`hipscore.domain.EarlierScore` as JSON.
    Its ``patient`` has birth date, sex and digests of the family name, to tell people apart.
    """

    __tablename__ = "earlier_reports"
    __table_args__ = (Index(None, "patient_key", "study_date"), _AUTOINCREMENT)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(Uid, unique=True)
    study_instance_uid: Mapped[str] = mapped_column(Uid)
    patient_key: Mapped[str] = mapped_column(String(40))
    study_date: Mapped[str] = mapped_column(String(8))
    content: Mapped[dict[str, Any]]
    received_at: Mapped[datetime]


class WorkItem(Base):
    """One Unified Procedure Step (PS3.4 CC, PS3.18 11).

    ``attributes`` is the whole data set in the DICOM JSON model (PS3.18 F); ``state`` is
    Procedure Step State (0074,1000). ``job_id`` is set while the item is an analysis of
    ours; ``label`` and ``priority`` repeat what is searched for.
    """

    __tablename__ = "workitems"
    __table_args__ = (
        Index(None, "state", "id"),
        Index(None, "job_id"),
        Index(None, "study_instance_uid"),
        _AUTOINCREMENT,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(Uid, unique=True)
    state: Mapped[str] = mapped_column(String(16))
    transaction_uid: Mapped[str | None] = mapped_column(Uid)
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    study_instance_uid: Mapped[str | None] = mapped_column(Uid)
    label: Mapped[str] = mapped_column(String(64), default="")
    priority: Mapped[str] = mapped_column(String(16), default="MEDIUM")
    attributes: Mapped[dict[str, Any]]
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class WorkItemEvent(Base):
    """One event report of a work item (PS3.4 CC.2.4), in the order in which they are sent."""

    __tablename__ = "workitem_events"
    __table_args__ = (Index(None, "workitem_uid", "id"), _AUTOINCREMENT)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime]
    workitem_uid: Mapped[str] = mapped_column(Uid)
    event_type: Mapped[int]
    body: Mapped[dict[str, Any]]


class Subscription(Base):
    """Who hears of a work item, or of all (``workitem_uid`` of PS3.4 CC.2.3.1 well-known UIDs).

    ``sent_id`` is the last event that was delivered over the subscriber's web-socket.
    """

    __tablename__ = "subscriptions"
    __table_args__ = (UniqueConstraint("subscriber", "workitem_uid"), _AUTOINCREMENT)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    subscriber: Mapped[str] = mapped_column(Aet)
    workitem_uid: Mapped[str] = mapped_column(Uid)
    deletion_lock: Mapped[bool] = mapped_column(Boolean, default=False)
    filter: Mapped[dict[str, Any] | None]
    sent_id: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime]


class AccessKey(Base):
    """A key for the API and the pages. Only its SHA-256 is kept: it has 256 random bits.

    ``role`` is ``viewer``, ``operator`` or ``admin``.
    """

    __tablename__ = "access_keys"
    __table_args__ = (_AUTOINCREMENT,)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(Sha256, unique=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class AccessSession(Base):
    """A browser that logged in with a key; ``sha256`` is that of its cookie."""

    __tablename__ = "access_sessions"
    __table_args__ = (Index(None, "expires_at"), _AUTOINCREMENT)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    sha256: Mapped[str] = mapped_column(Sha256, unique=True)
    key_id: Mapped[int] = mapped_column(ForeignKey("access_keys.id"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class AuditEvent(Base):
    """Who looked at what, and who did what. Rows are only ever added.

    ``who`` is the name of a key, ``local`` where access is open, or ``command line``.
    ``action`` is a verb, ``study_instance_uid`` what it was about.
    """

    __tablename__ = "audit"
    __table_args__ = (
        Index(None, "study_instance_uid", "id"),
        Index(None, "who", "id"),
        _AUTOINCREMENT,
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime]
    who: Mapped[str] = mapped_column(String(64))
    role: Mapped[str] = mapped_column(String(16))
    action: Mapped[str] = mapped_column(String(64))
    study_instance_uid: Mapped[str | None] = mapped_column(Uid)
    address: Mapped[str] = mapped_column(String(64), default="")
    detail: Mapped[dict[str, Any]]
