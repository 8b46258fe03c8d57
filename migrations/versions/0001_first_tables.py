"""Series, instances, jobs, artifacts, deliveries and the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Written out, not imported: a revision must stay what it was when the tables change.
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
UID = sa.String(64)
SHA256 = sa.String(64)
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _series()
    _instances()
    _jobs()
    _artifacts()
    _deliveries()
    _events()
    _append_only()


def downgrade() -> None:
    _append_only_no_more()
    for table in (
        "events",
        "deliveries",
        "artifacts",
        "job_instances",
        "jobs",
        "instances",
        "series",
    ):
        op.drop_table(table)


def _series() -> None:
    op.create_table(
        "series",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("study_instance_uid", UID, nullable=False),
        sa.Column("series_instance_uid", UID, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("close_reason", sa.String(64), nullable=True),
        sa.Column("match_rule", sa.String(64), nullable=True),
        sa.Column("calling_aet", sa.String(16), nullable=False),
        sa.Column("called_aet", sa.String(16), nullable=False),
        sa.Column("peer", sa.String(255), nullable=False),
        sa.Column("first_received_at", TIME, nullable=False),
        sa.Column("last_received_at", TIME, nullable=False),
        sa.Column("closed_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
        sa.UniqueConstraint("series_instance_uid", name=op.f("uq_series_series_instance_uid")),
        _one_of("series", "state", "RECEIVING", "COMPLETE", "MATCHED", "IGNORED"),
        sqlite_autoincrement=True,
    )
    _index("series", "study_instance_uid", "id")
    _index("series", "state", "last_received_at")


def _instances() -> None:
    op.create_table(
        "instances",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("series_id", BIG_ID, nullable=False),
        sa.Column("sop_class_uid", UID, nullable=False),
        sa.Column("sop_instance_uid", UID, nullable=False),
        sa.Column("transfer_syntax_uid", UID, nullable=False),
        sa.Column("sha256", SHA256, nullable=False),
        sa.Column("spool_key", sa.String(128), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("instance_number", sa.BigInteger(), nullable=True),
        sa.Column("number_of_frames", sa.Integer(), nullable=False),
        sa.Column("images_in_acquisition", sa.BigInteger(), nullable=True),
        sa.Column("position_mm", JSON, nullable=True),
        sa.Column("orientation", JSON, nullable=True),
        sa.Column("image_type", JSON, nullable=False),
        sa.Column("association_id", sa.String(64), nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("purged_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_instances_sop_instance_uid")),
        _refers("instances", "series_id", "series"),
        sqlite_autoincrement=True,
    )
    _index("instances", "series_id")
    _index("instances", "association_id")
    _index("instances", "spool_key")


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("key", SHA256, nullable=False),
        sa.Column("series_id", BIG_ID, nullable=False),
        sa.Column("instances_digest", SHA256, nullable=False),
        sa.Column("bundle_id", sa.String(128), nullable=False),
        sa.Column("bundle_version", sa.String(64), nullable=False),
        sa.Column("bundle_sha256", SHA256, nullable=False),
        sa.Column("supersedes_id", BIG_ID, nullable=True),
        *_leased(),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("reason_code", sa.String(64), nullable=True),
        sa.Column("result", JSON, nullable=True),
        sa.Column("timings", JSON, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("key", name=op.f("uq_jobs_key")),
        sa.UniqueConstraint(
            "series_id",
            "instances_digest",
            "bundle_id",
            "bundle_sha256",
            name=op.f("uq_jobs_series_id_instances_digest_bundle_id_bundle_sha256"),
        ),
        _refers("jobs", "series_id", "series"),
        _refers("jobs", "supersedes_id", "jobs"),
        _one_of("jobs", "state", "QUEUED", "ANALYSING", "ANALYSED", "NOT_SCORABLE", "FAILED"),
        sqlite_autoincrement=True,
    )
    _index("jobs", "state", "id")
    _index("jobs", "state", "next_attempt_at")
    _index("jobs", "state", "lease_until")
    _index("jobs", "supersedes_id")
    op.create_table(
        "job_instances",
        sa.Column("job_id", BIG_ID, nullable=False),
        sa.Column("instance_id", BIG_ID, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "instance_id", name=op.f("pk_job_instances")),
        _refers("job_instances", "job_id", "jobs"),
        _refers("job_instances", "instance_id", "instances"),
    )
    _index("job_instances", "instance_id")


def _artifacts() -> None:
    op.create_table(
        "artifacts",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("job_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("media_type", sa.String(64), nullable=False),
        sa.Column("spool_key", sa.String(128), nullable=False),
        sa.Column("sha256", SHA256, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sop_class_uid", UID, nullable=True),
        sa.Column("sop_instance_uid", UID, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("purged_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
        sa.UniqueConstraint("job_id", "kind", name=op.f("uq_artifacts_job_id_kind")),
        _refers("artifacts", "job_id", "jobs"),
        _one_of("artifacts", "kind", "seg", "sr", "sr_comprehensive", "overlay"),
        sqlite_autoincrement=True,
    )
    _index("artifacts", "spool_key")


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("artifact_id", BIG_ID, nullable=False),
        sa.Column("destination", sa.String(320), nullable=False),
        *_leased(),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("form_id", BIG_ID, nullable=True),
        sa.Column("commit_at", TIME, nullable=True),
        sa.Column("commit_attempts", sa.Integer(), nullable=False),
        sa.Column("transaction_uid", UID, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
        sa.UniqueConstraint(
            "artifact_id", "destination", name=op.f("uq_deliveries_artifact_id_destination")
        ),
        _refers("deliveries", "artifact_id", "artifacts"),
        _refers("deliveries", "form_id", "artifacts"),
        _one_of(
            "deliveries", "state", "PENDING", "SENDING", "SENT", "COMMITTED", "REFUSED", "EXHAUSTED"
        ),
        sqlite_autoincrement=True,
    )
    _index("deliveries", "state", "id")
    _index("deliveries", "state", "next_attempt_at")
    _index("deliveries", "state", "lease_until")
    _index("deliveries", "state", "commit_at")
    _index("deliveries", "transaction_uid")


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("series_id", BIG_ID, nullable=False),
        sa.Column("job_id", BIG_ID, nullable=True),
        sa.Column("delivery_id", BIG_ID, nullable=True),
        sa.Column("what", sa.String(64), nullable=False),
        sa.Column("from_state", sa.String(16), nullable=True),
        sa.Column("to_state", sa.String(16), nullable=True),
        sa.Column("detail", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        _refers("events", "series_id", "series"),
        _refers("events", "job_id", "jobs"),
        _refers("events", "delivery_id", "deliveries"),
        sqlite_autoincrement=True,
    )
    _index("events", "series_id", "id")


def _append_only() -> None:
    """The database itself refuses to change or remove a line of the ledger.

    A batch operation on ``events`` (SQLite: copy, drop, rename) loses the triggers: a
    revision that needs one calls for them again.
    """
    refusal = "the ledger is append-only"
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{refusal}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events "
            "FOR EACH STATEMENT EXECUTE FUNCTION events_append_only()"
        )
        return
    for move in ("update", "delete"):
        op.execute(
            f"CREATE TRIGGER events_no_{move} BEFORE {move.upper()} ON events "
            f"BEGIN SELECT RAISE(ABORT, '{refusal}'); END"
        )


def _append_only_no_more() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER events_append_only ON events")
        op.execute("DROP FUNCTION events_append_only()")
        return
    for move in ("update", "delete"):
        op.execute(f"DROP TRIGGER events_no_{move}")


def _leased() -> tuple[sa.Column[object], ...]:
    """Columns of whatever a worker claims, tries and tries again."""
    return (
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lease", sa.String(96), nullable=True),
        sa.Column("lease_until", TIME, nullable=True),
        sa.Column("next_attempt_at", TIME, nullable=True),
        sa.Column("enqueued_at", TIME, nullable=True),
    )


def _one_of(table: str, column: str, *values: str) -> sa.CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=op.f(f"ck_{table}_{column}"))


def _refers(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=op.f(f"fk_{table}_{column}"))


def _index(table: str, *columns: str) -> None:
    op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))
