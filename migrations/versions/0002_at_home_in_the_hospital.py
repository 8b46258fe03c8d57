"""Studies, work items, access, audit; more kinds of artifacts; withdrawn results."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Written out, not imported: a revision must stay what it was when the tables change.
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
UID = sa.String(64)
SHA256 = sa.String(64)
TIME = sa.DateTime(timezone=True)

KINDS = ("seg", "sr", "sr_comprehensive", "overlay")
NEW_KINDS = (*KINDS, "sc", "pdf", "oru", "rejection")
NEW_TABLES = (
    "audit",
    "access_sessions",
    "access_keys",
    "subscriptions",
    "workitem_events",
    "workitems",
    "earlier_reports",
    "studies",
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("withdrawn_at", TIME, nullable=True))
    _artifacts(("job_id", "kind"), ("job_id", "kind", "number"), NEW_KINDS)
    _index("artifacts", "sop_instance_uid")
    _studies()
    _earlier_reports()
    _work_items()
    _access()
    _append_only("audit", "the audit log is append-only")
    _fill_studies()


def downgrade() -> None:
    withdrawn = sa.text("SELECT count(*) FROM jobs WHERE withdrawn_at IS NOT NULL")
    if op.get_bind().execute(withdrawn).scalar():
        raise RuntimeError("results were withdrawn, and the older version would show them again")
    newer = ", ".join(f"'{kind}'" for kind in NEW_KINDS if kind not in KINDS)
    those = f"SELECT id FROM artifacts WHERE kind IN ({newer})"  # noqa: S608 - constants
    if _ledger_names_deliveries(those):
        # the ledger refers to their deliveries and is append-only
        raise RuntimeError(
            "results of kinds that the older version does not know were sent: keep this version"
        )
    _append_only_no_more("audit")
    op.drop_index(op.f("ix_series_first_received_at"), table_name="series")
    for table in NEW_TABLES:
        op.drop_table(table)
    op.execute(f"DELETE FROM deliveries WHERE artifact_id IN ({those})")  # noqa: S608
    op.execute(f"DELETE FROM artifacts WHERE kind IN ({newer})")  # noqa: S608
    op.drop_index(op.f("ix_artifacts_sop_instance_uid"), table_name="artifacts")
    _artifacts(("job_id", "kind", "number"), ("job_id", "kind"), KINDS)
    op.drop_column("jobs", "withdrawn_at")


def _ledger_names_deliveries(artifacts: str) -> bool:
    sent = f"SELECT id FROM deliveries WHERE artifact_id IN ({artifacts})"  # noqa: S608
    query = f"SELECT count(*) FROM events WHERE delivery_id IN ({sent})"  # noqa: S608
    return bool(op.get_bind().execute(sa.text(query)).scalar())


def _artifacts(old: tuple[str, ...], new: tuple[str, ...], kinds: tuple[str, ...]) -> None:
    """Other kinds, and several of a kind, or no longer."""
    adding = "number" in new
    check = sa.CheckConstraint(_one_of("kind", *kinds), name=op.f("ck_artifacts_kind"))
    unique_old = op.f(f"uq_artifacts_{'_'.join(old)}")
    unique_new = op.f(f"uq_artifacts_{'_'.join(new)}")

    def number() -> sa.Column[int]:
        return sa.Column("number", sa.Integer(), nullable=False, server_default="0")

    if op.get_bind().dialect.name == "postgresql":
        if adding:
            op.add_column("artifacts", number())
        op.drop_constraint(unique_old, "artifacts", type_="unique")
        op.drop_constraint(op.f("ck_artifacts_kind"), "artifacts", type_="check")
        if not adding:
            op.drop_column("artifacts", "number")
        op.create_unique_constraint(unique_new, "artifacts", list(new))
        op.create_check_constraint(op.f("ck_artifacts_kind"), "artifacts", str(check.sqltext))
        return
    # SQLite rebuilds the table: from what is written here, not from what it remembers
    table = sa.Table(
        "artifacts",
        sa.MetaData(),
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("job_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        *([] if adding else [number()]),
        sa.Column("media_type", sa.String(64), nullable=False),
        sa.Column("spool_key", sa.String(128), nullable=False),
        sa.Column("sha256", SHA256, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sop_class_uid", UID, nullable=True),
        sa.Column("sop_instance_uid", UID, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("purged_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_artifacts_job_id")),
        sa.Index(op.f("ix_artifacts_spool_key"), "spool_key"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table(
        "artifacts",
        copy_from=table,
        recreate="always",
        table_args=(check,),
        table_kwargs={"sqlite_autoincrement": True},
    ) as batch:
        if adding:
            batch.add_column(number())
        else:
            batch.drop_column("number")
        batch.create_unique_constraint(unique_new, list(new))


def _studies() -> None:
    text = sa.String
    op.create_table(
        "studies",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("study_instance_uid", UID, nullable=False),
        sa.Column("newest_series_id", BIG_ID, nullable=False),
        sa.Column("patient_key", text(40), nullable=True),
        sa.Column("patient_id", text(64), nullable=False),
        sa.Column("issuer_of_patient_id", text(64), nullable=False),
        sa.Column("patient_name", text(324), nullable=False),
        sa.Column("birth_date", text(8), nullable=False),
        sa.Column("sex", text(16), nullable=False),
        sa.Column("study_date", text(8), nullable=False),
        sa.Column("study_time", text(16), nullable=False),
        sa.Column("study_id", text(16), nullable=False),
        sa.Column("study_description", text(64), nullable=False),
        sa.Column("accession_number", text(16), nullable=False),
        sa.Column("requested_procedure_id", text(16), nullable=False),
        sa.Column("requested_procedure_description", text(64), nullable=False),
        sa.Column("referring_physician", text(324), nullable=False),
        sa.Column("order_source", text(16), nullable=False),
        sa.Column("status", text(16), nullable=True),
        sa.Column("reason_code", text(64), nullable=True),
        sa.Column("job_id", BIG_ID, nullable=True),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("score_right", sa.Float(), nullable=True),
        sa.Column("score_left", sa.Float(), nullable=True),
        sa.Column("priority", sa.Boolean(), nullable=False),
        sa.Column("priority_reason", text(255), nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
        sa.UniqueConstraint("study_instance_uid", name=op.f("uq_studies_study_instance_uid")),
        _refers("studies", "newest_series_id", "series"),
        _refers("studies", "job_id", "jobs"),
        sqlite_autoincrement=True,
    )
    for columns in (
        ("newest_series_id",),
        ("status", "newest_series_id"),
        ("score", "newest_series_id"),
        ("priority", "newest_series_id"),
        ("patient_key", "study_date"),
        ("accession_number",),
        ("patient_id",),
        ("study_date",),
    ):
        _index("studies", *columns)
    # for LIKE 'DOE%' whatever the collation of the database is
    op.create_index(
        op.f("ix_studies_patient_name"),
        "studies",
        ["patient_name"],
        postgresql_ops={"patient_name": "text_pattern_ops"},
    )
    _index("series", "first_received_at")


def _earlier_reports() -> None:
    op.create_table(
        "earlier_reports",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("sop_instance_uid", UID, nullable=False),
        sa.Column("study_instance_uid", UID, nullable=False),
        sa.Column("patient_key", sa.String(40), nullable=False),
        sa.Column("study_date", sa.String(8), nullable=False),
        sa.Column("content", JSON, nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_earlier_reports")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_earlier_reports_sop_instance_uid")),
        sqlite_autoincrement=True,
    )
    _index("earlier_reports", "patient_key", "study_date")


def _work_items() -> None:
    op.create_table(
        "workitems",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("sop_instance_uid", UID, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("transaction_uid", UID, nullable=True),
        sa.Column("job_id", BIG_ID, nullable=True),
        sa.Column("study_instance_uid", UID, nullable=True),
        sa.Column("label", sa.String(64), nullable=False),
        sa.Column("priority", sa.String(16), nullable=False),
        sa.Column("attributes", JSON, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workitems")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_workitems_sop_instance_uid")),
        _refers("workitems", "job_id", "jobs"),
        sqlite_autoincrement=True,
    )
    _index("workitems", "state", "id")
    _index("workitems", "job_id")
    _index("workitems", "study_instance_uid")
    op.create_table(
        "workitem_events",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("workitem_uid", UID, nullable=False),
        sa.Column("event_type", sa.Integer(), nullable=False),
        sa.Column("body", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workitem_events")),
        sqlite_autoincrement=True,
    )
    _index("workitem_events", "workitem_uid", "id")
    op.create_table(
        "subscriptions",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("subscriber", sa.String(16), nullable=False),
        sa.Column("workitem_uid", UID, nullable=False),
        sa.Column("deletion_lock", sa.Boolean(), nullable=False),
        sa.Column("filter", JSON, nullable=True),
        sa.Column("sent_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subscriptions")),
        sa.UniqueConstraint(
            "subscriber", "workitem_uid", name=op.f("uq_subscriptions_subscriber_workitem_uid")
        ),
        sqlite_autoincrement=True,
    )


def _access() -> None:
    op.create_table(
        "access_keys",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("sha256", SHA256, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_keys")),
        sa.UniqueConstraint("name", name=op.f("uq_access_keys_name")),
        sa.UniqueConstraint("sha256", name=op.f("uq_access_keys_sha256")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "access_sessions",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("sha256", SHA256, nullable=False),
        sa.Column("key_id", BIG_ID, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_sessions")),
        sa.UniqueConstraint("sha256", name=op.f("uq_access_sessions_sha256")),
        _refers("access_sessions", "key_id", "access_keys"),
        sqlite_autoincrement=True,
    )
    _index("access_sessions", "expires_at")
    op.create_table(
        "audit",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("who", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("study_instance_uid", UID, nullable=True),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("detail", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )
    _index("audit", "study_instance_uid", "id")
    _index("audit", "who", "id")


def _append_only(table: str, refusal: str) -> None:
    """The database itself refuses to change or remove a row."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{refusal}'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
        )
        return
    for move in ("update", "delete"):
        op.execute(
            f"CREATE TRIGGER {table}_no_{move} BEFORE {move.upper()} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{refusal}'); END"
        )


def _append_only_no_more(table: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"DROP TRIGGER {table}_append_only ON {table}")
        op.execute(f"DROP FUNCTION {table}_append_only()")
        return
    for move in ("update", "delete"):
        op.execute(f"DROP TRIGGER {table}_no_{move}")


def _fill_studies() -> None:
    """A line for every study that is known. Whose it is stands only in its images."""
    series = sa.table("series", sa.column("id", BIG_ID), sa.column("study_instance_uid", UID))
    jobs = sa.table(
        "jobs",
        sa.column("id", BIG_ID),
        sa.column("series_id", BIG_ID),
        sa.column("supersedes_id", BIG_ID),
        sa.column("state", sa.String),
        sa.column("reason_code", sa.String),
        sa.column("result", JSON),
    )
    studies = sa.table(
        "studies",
        *(sa.column(name) for name in _EMPTY),
        sa.column("study_instance_uid", UID),
        sa.column("newest_series_id", BIG_ID),
        sa.column("status", sa.String),
        sa.column("reason_code", sa.String),
        sa.column("job_id", BIG_ID),
        sa.column("score", sa.Float),
        sa.column("score_right", sa.Float),
        sa.column("score_left", sa.Float),
        sa.column("priority", sa.Boolean),
        sa.column("updated_at", TIME),
    )
    connection = op.get_bind()
    later = jobs.alias("later")
    current = (
        sa.select(jobs.c.id, jobs.c.state, series.c.study_instance_uid)
        .join(series, series.c.id == jobs.c.series_id)
        .where(~sa.exists().where(later.c.supersedes_id == jobs.c.id))
        .order_by(jobs.c.id)
    )
    speaking: dict[str, Any] = {}
    for row in connection.execute(current):
        best = speaking.get(row.study_instance_uid)
        if best is None or _RANK[row.state] <= _RANK[best.state]:
            speaking[row.study_instance_uid] = row
    results = _results(jobs, [row.id for row in speaking.values()])
    newest = sa.select(series.c.study_instance_uid, sa.func.max(series.c.id)).group_by(
        series.c.study_instance_uid
    )
    now = datetime.now(UTC)
    if connection.dialect.name == "sqlite":
        now = now.replace(tzinfo=None)
    rows = [
        {
            **dict.fromkeys(_EMPTY, ""),
            "study_instance_uid": uid,
            "newest_series_id": newest_id,
            "priority": False,
            "updated_at": now,
            **(results[speaking[uid].id] if uid in speaking else _outcome(None)),
        }
        for uid, newest_id in connection.execute(newest)
    ]
    if rows:
        connection.execute(sa.insert(studies), rows)


def _results(jobs: sa.TableClause, ids: list[int]) -> dict[int, dict[str, Any]]:
    """What the worklist shows of these jobs; a few at a time, as results are large."""
    found = {}
    for start in range(0, len(ids), 200):
        page = sa.select(jobs).where(jobs.c.id.in_(ids[start : start + 200]))
        found |= {job.id: _outcome(job) for job in op.get_bind().execute(page)}
    return found


_EMPTY = (
    "patient_id",
    "issuer_of_patient_id",
    "patient_name",
    "birth_date",
    "sex",
    "study_date",
    "study_time",
    "study_id",
    "study_description",
    "accession_number",
    "requested_procedure_id",
    "requested_procedure_description",
    "referring_physician",
    "order_source",
    "priority_reason",
)
_RANK = {"ANALYSED": 0, "QUEUED": 1, "ANALYSING": 1, "NOT_SCORABLE": 2, "FAILED": 3}
_STATUS = {
    "ANALYSED": "scored",
    "QUEUED": "queued",
    "ANALYSING": "analysing",
    "NOT_SCORABLE": "not_scorable",
    "FAILED": "failed",
}


def _outcome(job: Any) -> dict[str, Any]:
    if job is None:
        empty = ("status", "reason_code", "job_id", "score", "score_right", "score_left")
        return dict.fromkeys(empty)
    result = job.result or {}
    sides = {hip["side"]: hip["unet_score"] for hip in result.get("hips", [])}
    return {
        "status": _STATUS[job.state],
        "reason_code": job.reason_code,
        "job_id": job.id,
        "score": result.get("unet_score"),
        "score_right": sides.get("right"),
        "score_left": sides.get("left"),
    }


def _one_of(column: str, *values: str) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


def _refers(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=op.f(f"fk_{table}_{column}"))


def _index(table: str, *columns: str) -> None:
    op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))
