"""What ran the networks of a job; what keeps large tables fast; rows of old studies may go."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Written out, not imported: a revision must stay what it was when the tables change.
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

STATES = {
    "series": ("RECEIVING", "COMPLETE", "MATCHED", "IGNORED"),
    "jobs": ("QUEUED", "ANALYSING", "ANALYSED", "NOT_SCORABLE", "FAILED"),
    "deliveries": ("PENDING", "SENDING", "SENT", "COMMITTED", "REFUSED", "EXHAUSTED"),
}
#: rows that are few, of tables that are large: table, columns, which rows
PARTIAL = (
    ("instances", ("received_at", "series_id"), "purged_at IS NULL"),
    (
        "artifacts",
        ("created_at", "job_id"),
        "purged_at IS NULL AND (sop_class_uid IS NOT NULL OR kind = 'oru')",
    ),
    (
        "deliveries",
        ("id",),
        (
            "state IN ('PENDING', 'SENDING', 'EXHAUSTED')"
            " OR (state IN ('REFUSED') AND form_id IS NULL)"
            " OR (state IN ('SENT') AND commit_at IS NOT NULL)"
        ),
    ),
    ("events", ("id",), "what IN ('conflict', 'misplaced')"),
)
#: what refers to a row that is deleted must be found, or nothing can be
REFERRING = (
    ("events", "job_id"),
    ("events", "delivery_id"),
    ("deliveries", "form_id"),
    ("studies", "job_id"),
)
#: all that is changed, in the order in which the service locks them
LOCKED = ("series", "instances", "jobs", "artifacts", "deliveries", "studies", "events")
LEDGER = "the ledger is append-only"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # All at once, before any work: a lock that is raised later could meet, after a minute of
        # indexes, a transaction that waits for this one.
        op.execute(f"LOCK TABLE {', '.join(LOCKED)} IN ACCESS EXCLUSIVE MODE")
    for table, columns, which in PARTIAL:
        op.create_index(
            op.f(f"ix_{table}_open_{'_'.join(columns)}"),
            table,
            list(columns),
            postgresql_where=sa.text(which),
            sqlite_where=sa.text(which),
        )
    for table, column in REFERRING:
        op.create_index(op.f(f"ix_{table}_{column}"), table, [column])
    op.drop_index(op.f("ix_studies_study_date"), table_name="studies")
    op.create_index(
        op.f("ix_studies_study_date_newest_series_id"),
        "studies",
        ["study_date", "newest_series_id"],
    )
    _tallies()
    _removals()
    op.add_column("jobs", sa.Column("engine", JSON, nullable=True))


def downgrade() -> None:
    _append_only()
    op.drop_table("removals")
    _no_tallies()
    op.drop_index(op.f("ix_studies_study_date_newest_series_id"), table_name="studies")
    op.create_index(op.f("ix_studies_study_date"), "studies", ["study_date"])
    for table, column in REFERRING:
        op.drop_index(op.f(f"ix_{table}_{column}"), table_name=table)
    for table, columns, _ in PARTIAL:
        op.drop_index(op.f(f"ix_{table}_open_{'_'.join(columns)}"), table_name=table)
    op.drop_column("jobs", "engine")


# --- how many rows are in each state -------------------------------------------------------


def _tallies() -> None:
    """Count by triggers: whoever moves a row, by whatever way, is counted.

    PostgreSQL adds a line for each move, so that no two transactions wait for one counter;
    the reaper folds the lines. SQLite has one writer, and a line for each state.
    A batch operation on one of the tables (SQLite) loses its triggers.
    """
    op.create_table(
        "tallies",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tallies")),
        sqlite_autoincrement=True,
    )
    if op.get_bind().dialect.name == "postgresql":
        _count_in_postgresql()
    else:
        _count_in_sqlite()
    for table, states in STATES.items():
        for state in states:
            op.execute(
                "INSERT INTO tallies (what, state, number) "  # noqa: S608 - constants
                f"SELECT '{table}', '{state}', count(*) FROM {table} WHERE state = '{state}'"
            )


def _count_in_postgresql() -> None:
    for name, sign in (("added", ""), ("removed", "-")):
        op.execute(
            f"CREATE FUNCTION tally_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "  # noqa: S608
            "INSERT INTO tallies (what, state, number) "
            f"SELECT TG_TABLE_NAME, state, {sign}count(*) FROM changed GROUP BY state; "
            "RETURN NULL; END $$"
        )
    op.execute(
        "CREATE FUNCTION tally_moved() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO tallies (what, state, number) "
        "VALUES (TG_TABLE_NAME, OLD.state, -1), (TG_TABLE_NAME, NEW.state, 1); "
        "RETURN NULL; END $$"
    )
    for table in STATES:
        op.execute(
            f"CREATE TRIGGER {table}_added AFTER INSERT ON {table} REFERENCING NEW TABLE AS "
            "changed FOR EACH STATEMENT EXECUTE FUNCTION tally_added()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_removed AFTER DELETE ON {table} REFERENCING OLD TABLE AS "
            "changed FOR EACH STATEMENT EXECUTE FUNCTION tally_removed()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_moved AFTER UPDATE OF state ON {table} FOR EACH ROW "
            "WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION tally_moved()"
        )


def _count_in_sqlite() -> None:
    for table in STATES:
        for name, when, moves in (
            ("added", f"AFTER INSERT ON {table}", (("NEW", "+"),)),
            ("removed", f"AFTER DELETE ON {table}", (("OLD", "-"),)),
            (
                "moved",
                f"AFTER UPDATE OF state ON {table} WHEN OLD.state <> NEW.state",
                (("OLD", "-"), ("NEW", "+")),
            ),
        ):
            counted = " ".join(
                f"UPDATE tallies SET number = number {sign} 1 "  # noqa: S608 - constants
                f"WHERE what = '{table}' AND state = {row}.state;"
                for row, sign in moves
            )
            op.execute(f"CREATE TRIGGER {table}_{name} {when} BEGIN {counted} END")


def _no_tallies() -> None:
    postgresql_ = op.get_bind().dialect.name == "postgresql"
    for table in STATES:
        for name in ("added", "removed", "moved"):
            op.execute(f"DROP TRIGGER {table}_{name}" + (f" ON {table}" if postgresql_ else ""))
    if postgresql_:
        for name in ("added", "removed", "moved"):
            op.execute(f"DROP FUNCTION tally_{name}()")
    op.drop_table("tallies")


# --- what may be deleted from the ledger ---------------------------------------------------


def _removals() -> None:
    """Lines of the ledger go only with their whole series, by those who say so beforehand."""
    op.create_table(
        "removals",
        sa.Column("series_id", BIG_ID, nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint("series_id", name=op.f("pk_removals")),
    )
    listed = "EXISTS (SELECT 1 FROM removals WHERE series_id = OLD.series_id)"
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER events_append_only ON events")
        op.execute(
            "CREATE TRIGGER events_append_only BEFORE UPDATE OR TRUNCATE ON events "
            "FOR EACH STATEMENT EXECUTE FUNCTION events_append_only()"
        )
        op.execute(
            "CREATE FUNCTION events_removal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF NOT {listed} THEN RAISE EXCEPTION '{LEDGER}'; END IF; RETURN OLD; END $$"
        )
        op.execute(
            "CREATE TRIGGER events_removal BEFORE DELETE ON events "
            "FOR EACH ROW EXECUTE FUNCTION events_removal()"
        )
        return
    op.execute("DROP TRIGGER events_no_delete")
    op.execute(
        f"CREATE TRIGGER events_no_delete BEFORE DELETE ON events WHEN NOT {listed} "
        f"BEGIN SELECT RAISE(ABORT, '{LEDGER}'); END"
    )


def _append_only() -> None:
    """As revision 0001 has it."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER events_removal ON events")
        op.execute("DROP FUNCTION events_removal()")
        op.execute("DROP TRIGGER events_append_only ON events")
        op.execute(
            "CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events "
            "FOR EACH STATEMENT EXECUTE FUNCTION events_append_only()"
        )
        return
    op.execute("DROP TRIGGER events_no_delete")
    op.execute(
        "CREATE TRIGGER events_no_delete BEFORE DELETE ON events "
        f"BEGIN SELECT RAISE(ABORT, '{LEDGER}'); END"
    )
