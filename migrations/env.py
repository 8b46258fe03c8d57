"""Run by Alembic: binds the scripts in ``versions`` to a database.

:func:`hipscore.store.engine.upgrade` hands over a connection whose transaction holds the
migration lock. From the ``alembic`` command line there is none: the database of the
settings (``HIPSCORE_DATABASE_URL``) is used then.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from hipscore.settings import Settings
from hipscore.store.engine import connect
from hipscore.store.tables import Base


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,  # SQLite cannot alter a table, only rebuild it
        transactional_ddl=True,  # a script that fails half-way leaves no trace, on both
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("there are no offline migrations; give a database that can be reached")
given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = connect(Settings().database)
    with engine.begin() as own:
        run(own)
    engine.dispose()
