"""Revision 0002 on a database with rows: nothing is lost, and every study has its line."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text

from hipscore.store import engine

SERIES = (
    "INSERT INTO series (id, study_instance_uid, series_instance_uid, state, calling_aet,"
    " called_aet, peer, first_received_at, last_received_at) VALUES"
    " ({id}, '{study}', '1.9.{id}', 'MATCHED', 'A', 'B', 'C', '2026-01-01', '2026-01-01')"
)
JOB = (
    "INSERT INTO jobs (id, key, series_id, instances_digest, bundle_id, bundle_version,"
    " bundle_sha256, supersedes_id, state, attempts, result, created_at) VALUES"
    " ({id}, 'k{id}', {series}, 'd{id}', 'b', '1', 's', {supersedes}, '{state}', 1,"
    " :result, '2026-01-01')"
)
ARTIFACT = (
    "INSERT INTO artifacts (id, job_id, kind, media_type, spool_key, sha256, size, created_at)"
    " VALUES (1, 1, 'sr', 'application/dicom', 'k', 's', 7, '2026-01-01')"
)


def result(score: float) -> str:
    hips = [{"side": "right", "unet_score": score}, {"side": "left", "unet_score": None}]
    return json.dumps({"unet_score": score, "hips": hips})


def filled(url: str) -> None:
    """Two studies: one scored twice, the later counts; one whose analysis failed."""
    engine.upgrade(url, "0001")
    connected = engine.connect(url)
    with connected.begin() as connection:
        for number, study in ((1, "1.2"), (2, "1.2"), (3, "1.3"), (4, "1.4")):
            connection.execute(text(SERIES.format(id=number, study=study)))
        for number, series, supersedes, state, given in (
            (1, 1, "NULL", "ANALYSED", result(1.0)),
            (2, 1, "1", "ANALYSED", result(2.0)),
            (3, 2, "NULL", "NOT_SCORABLE", "{}"),
            (4, 3, "NULL", "FAILED", None),
        ):
            line = JOB.format(id=number, series=series, supersedes=supersedes, state=state)
            connection.execute(text(line), {"result": given})
        connection.execute(text(ARTIFACT))
    connected.dispose()


def test_every_study_gets_the_line_of_what_speaks_for_it(database_url: str) -> None:
    filled(database_url)
    engine.upgrade(database_url)
    connected = engine.connect(database_url)
    with connected.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT study_instance_uid, newest_series_id, status, job_id, score, score_right,"
                " score_left FROM studies ORDER BY study_instance_uid"
            )
        ).all()
        kept = connection.execute(text("SELECT kind, number, size FROM artifacts")).all()
    connected.dispose()
    assert [tuple(row) for row in rows] == [
        ("1.2", 2, "scored", 2, 2.0, 2.0, None),
        ("1.3", 3, "failed", 4, None, None, None),
        ("1.4", 4, None, None, None, None, None),
    ]
    assert [tuple(row) for row in kept] == [("sr", 0, 7)]


def test_the_way_back_keeps_what_the_older_version_knows(database_url: str) -> None:
    filled(database_url)
    engine.upgrade(database_url)
    engine.downgrade(database_url, "0001")
    connected = engine.connect(database_url)
    with connected.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM jobs")) == 4
        assert connection.scalar(text("SELECT count(*) FROM artifacts")) == 1
    connected.dispose()


def test_there_is_no_way_back_once_a_result_was_withdrawn(database_url: str) -> None:
    filled(database_url)
    engine.upgrade(database_url)
    connected = engine.connect(database_url)
    with connected.begin() as connection:
        connection.execute(text("UPDATE jobs SET withdrawn_at = '2026-02-01' WHERE id = 2"))
    with pytest.raises(RuntimeError, match="withdrawn"):
        engine.downgrade(database_url, "0001")
    with connected.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM studies")) == 3
    connected.dispose()
