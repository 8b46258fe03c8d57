"""The plan of every statement behind every question."""

from __future__ import annotations

import random

from sqlalchemy import Engine

from benchmarks.database.questions import questions
from benchmarks.pages.__main__ import recorded

_WIDTH = 180


def explain(engine: Engine, studies: int) -> str:
    """EXPLAIN (ANALYZE, BUFFERS) of each statement, as Markdown; nothing stays changed."""
    parts = []
    for question in questions(engine, studies, random.Random(2)):  # noqa: S311 - which keys
        parts.append(f"## {question.name}\n")
        with question.maker() as session:
            begin = question.prepare(session)
            with recorded(engine) as statements:
                begin()
            session.rollback()
        with engine.connect() as connection:
            for statement, values in statements:
                if statement.startswith("INSERT"):
                    continue  # of rows that refer to some that were rolled back
                plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", values)
                lines = [str(row[0])[:_WIDTH] for row in plan]
                parts.append("\n".join(("```", statement[:1000], "", *lines, "```\n")))
                connection.rollback()
    return "\n".join(parts)
