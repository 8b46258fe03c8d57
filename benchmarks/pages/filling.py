"""Fills a PostgreSQL with analyses as they come in a hospital, by SQL: a minute for 100,000."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text

#: a series of 24 images has its rows too; more would only take longer
IMAGES = 24
_SLICES = 15

_FILL = (
    """
    INSERT INTO series (id, study_instance_uid, series_instance_uid, state, close_reason,
        match_rule, calling_aet, called_aet, peer, first_received_at, last_received_at, closed_at)
    SELECT n, '2.25.1' || lpad(n::text, 9, '0'), '2.25.2' || lpad(n::text, 9, '0'), 'MATCHED',
        'expected_count', 'hip-fat-suppressed', 'SCANNER', 'HIPSCORE', '10.0.0.7',
        CAST(:start AS timestamptz) + n * CAST(:step AS interval),
        CAST(:start AS timestamptz) + n * CAST(:step AS interval) + interval '40 seconds',
        CAST(:start AS timestamptz) + n * CAST(:step AS interval) + interval '41 seconds'
    FROM generate_series(1, :count) n
    """,
    """
    INSERT INTO instances (series_id, sop_class_uid, sop_instance_uid, transfer_syntax_uid,
        sha256, spool_key, size, instance_number, number_of_frames, images_in_acquisition,
        position_mm, orientation, image_type, association_id, received_at, purged_at)
    SELECT n, '1.2.840.10008.5.1.4.1.1.4',
        '2.25.3' || lpad(n::text, 9, '0') || lpad(i::text, 3, '0'),
        '1.2.840.10008.1.2.1', md5(n::text || '.' || i) || md5(i || '.' || n),
        left(md5(n || '/' || i), 2) || '/' || md5(i || '/' || n) || left(md5(n || '/' || i), 30),
        295000, i, 1, :images,
        jsonb_build_array(-180, -60 + 5 * i, 180), '[1, 0, 0, 0, 0, -1]'::jsonb,
        '["ORIGINAL", "PRIMARY", "M"]'::jsonb, md5(n::text),
        CAST(:start AS timestamptz) + n * CAST(:step AS interval),
        CASE WHEN CAST(:start AS timestamptz) + n * CAST(:step AS interval)
            < now() - CAST(:images_kept AS interval) THEN now() END
    FROM generate_series(1, :count) n,
        generate_series(1, CASE WHEN n % :every = 0 THEN :images ELSE 1 END) i
    """,
    """
    INSERT INTO jobs (id, key, series_id, instances_digest, bundle_id, bundle_version,
        bundle_sha256, state, attempts, error, reason_code, result, timings, created_at,
        finished_at)
    SELECT n, md5(n::text) || md5('key' || n), n, md5('set' || n) || md5(n::text), 'stir-unet',
        '1.0', repeat('b', 64), kind, 1, CASE kind WHEN 'FAILED' THEN 'the worker died' END,
        CASE kind WHEN 'NOT_SCORABLE' THEN 'no_hip_found' END,
        CASE kind
            WHEN 'ANALYSED' THEN whole || jsonb_build_object(
                'study_instance_uid', '2.25.1' || lpad(n::text, 9, '0'),
                'unet_score', round((right_score + left_score)::numeric, 4),
                'hips', jsonb_build_array(
                    (whole #> '{hips,0}')
                        || jsonb_build_object('unet_score', right_score),
                    (whole #> '{hips,1}')
                        || jsonb_build_object('unet_score', left_score)))
            WHEN 'NOT_SCORABLE' THEN whole || jsonb_build_object(
                'status', 'not_scorable', 'unet_score', NULL, 'hips', '[]'::jsonb,
                'reason', '{"code": "no_hip_found", "text": "no femoral head was found"}'::jsonb)
        END,
        '{"read": 0.1, "segment": 1.2, "seg": 0.1, "sr": 0.1}'::jsonb,
        CAST(:start AS timestamptz) + n * CAST(:step AS interval) + interval '41 seconds',
        CASE WHEN kind <> 'QUEUED' THEN
            CAST(:start AS timestamptz) + n * CAST(:step AS interval) + interval '45 seconds' END
    FROM (SELECT n,
            CASE WHEN n % :every = 0 THEN CAST(:result AS jsonb) ELSE CAST(:brief AS jsonb) END
                AS whole,
            CASE WHEN n > :count - :queued THEN 'QUEUED' WHEN n % 1000 = 7 THEN 'FAILED'
                 WHEN n % 12 = 5 THEN 'NOT_SCORABLE' ELSE 'ANALYSED' END AS kind,
            round((12 * power(abs(sin(n * 12.9898)), 3))::numeric, 4)::float8 AS right_score,
            round((12 * power(abs(sin(n * 78.233)), 3))::numeric, 4)::float8 AS left_score
        FROM generate_series(1, :count) n) one
    """,
    """
    INSERT INTO job_instances (job_id, instance_id)
    SELECT series_id, id FROM instances
    """,
    """
    INSERT INTO artifacts (job_id, kind, number, media_type, spool_key, sha256, size, sop_class_uid,
        sop_instance_uid, created_at, purged_at)
    SELECT id, kind, 0, CASE kind WHEN 'overlay' THEN 'image/png' ELSE 'application/dicom' END,
        left(md5(kind || id), 2) || '/' || md5(id || kind) || left(md5(kind || id), 30),
        md5(kind || id) || md5(id || kind), 60000,
        CASE WHEN kind <> 'overlay' THEN '1.2.840.10008.5.1.4.1.1.66.4' END,
        CASE WHEN kind <> 'overlay' THEN '2.25.4' || lpad(id::text, 9, '0') || length(kind) END,
        finished_at,
        CASE WHEN kind <> 'overlay' AND finished_at < now() - CAST(:results_kept AS interval)
            THEN now() END
    FROM jobs, unnest(ARRAY['seg', 'sr', 'sr_comprehensive', 'overlay']) kind
    WHERE state IN ('ANALYSED', 'NOT_SCORABLE')
    """,
    """
    INSERT INTO deliveries (artifact_id, destination, state, attempts, status, error,
        commit_attempts, created_at, finished_at)
    SELECT id, destination, kind, 1, 0, CASE kind WHEN 'EXHAUSTED' THEN 'cannot be reached' END, 1,
        created_at, created_at + interval '2 seconds'
    FROM (SELECT artifacts.id, destination, created_at,
            CASE WHEN job_id % 2000 = 3 THEN 'EXHAUSTED' WHEN job_id % 5000 = 9 THEN 'REFUSED'
                 WHEN job_id > :count - 100 THEN 'PENDING' ELSE 'COMMITTED' END AS kind
        FROM artifacts, unnest(ARRAY['PACS@10.0.0.5:104', 'ARCHIVE@10.0.0.6:104']) destination
        WHERE artifacts.kind IN ('seg', 'sr')) one
    """,
    """
    INSERT INTO events (at, series_id, job_id, what, from_state, to_state, detail)
    SELECT created_at + step * interval '1 second', series_id, CASE WHEN step > 3 THEN id END,
        (ARRAY['open', 'close', 'match', 'open', 'claim', 'analysed'])[step], NULL,
        (ARRAY['RECEIVING', 'COMPLETE', 'MATCHED', 'QUEUED', 'ANALYSING', 'ANALYSED'])[step],
        jsonb_build_object('images', :images, 'attempt', 1)
    FROM jobs, generate_series(1, 6) step
    """,
    """
    INSERT INTO events (at, series_id, job_id, delivery_id, what, from_state, to_state, detail)
    SELECT deliveries.finished_at, job_id, job_id, deliveries.id, what, 'PENDING', 'SENDING', '{}'
    FROM deliveries JOIN artifacts ON artifacts.id = artifact_id,
        unnest(ARRAY['claim', 'sent', 'commit']) what
    """,
    """
    INSERT INTO studies (study_instance_uid, newest_series_id, patient_key, patient_id,
        issuer_of_patient_id, patient_name, birth_date, sex, study_date, study_time, study_id,
        study_description, accession_number, requested_procedure_id,
        requested_procedure_description, referring_physician, order_source, status, reason_code,
        job_id, score, score_right, score_left, priority, priority_reason, updated_at)
    SELECT study_instance_uid, series.id, md5((series.id % 40000)::text) || '00000000',
        'P' || lpad((series.id % 40000)::text, 7, '0'), '',
        (ARRAY['DOE', 'MUELLER', 'SMITH', 'ROSSI', 'NOVAK', 'IVANOVA', 'GARCIA', 'KIM']
            )[1 + series.id % 8] || upper(left(md5((series.id % 40000)::text), 5)) || '^'
            || initcap(md5(series.id::text)),
        '19700101', 'F', to_char(first_received_at, 'YYYYMMDD'), '101500', '1', 'MRI hips',
        'A' || lpad(series.id::text, 9, '0'), '', '', '', 'images',
        CASE jobs.state WHEN 'ANALYSED' THEN 'scored' ELSE lower(jobs.state) END,
        jobs.reason_code, jobs.id,
        (result ->> 'unet_score')::float8, (result #>> '{hips,0,unet_score}')::float8,
        (result #>> '{hips,1,unet_score}')::float8,
        coalesce((result ->> 'unet_score')::float8 > 20, false),
        CASE WHEN (result ->> 'unet_score')::float8 > 20 THEN 'UNet-score 20 or more' ELSE '' END,
        last_received_at
    FROM series JOIN jobs ON jobs.series_id = series.id
    """,
)
_TABLES = ("series", "instances", "jobs", "artifacts", "deliveries", "events", "studies")


#: as good as for ever
_FOR_EVER = timedelta(days=36500)


def fill(
    engine: Engine,
    count: int,
    *,
    every: int = 1,
    minutes: float = 20.0,
    queued: int = 20,
    images_kept: timedelta = _FOR_EVER,
    results_kept: timedelta = _FOR_EVER,
) -> None:
    """Make so many studies with everything that hangs on them, the newest of them now.

    Parameters
    ----------
    engine
        An empty database with the tables.
    count
        How many studies.
    every
        Each so-many-th is whole; the others have one image and one slice per hip.
    minutes
        Between one study and the next.
    queued
        How many of them wait for their analysis.
    images_kept, results_kept
        Files of older ones are purged; their rows are not.
    """
    step = timedelta(minutes=minutes)
    known: dict[str, Any] = {
        "count": count,
        "images": IMAGES,
        "every": every,
        "step": step,
        "queued": queued,
        "images_kept": images_kept,
        "results_kept": results_kept,
        "start": datetime.now(UTC) - step * (count + 1),
        "result": json.dumps(result()),
        "brief": json.dumps(result(slices=1)),
    }
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL synchronous_commit = off"))
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # no FK checks
        connection.execute(text("SET LOCAL maintenance_work_mem = '512MB'"))
        # faster made anew than kept up with two million rows in random order
        indexes = connection.execute(
            text("SELECT indexname, indexdef FROM pg_indexes WHERE indexname LIKE 'ix\\_%'")
        ).all()
        for name, _ in indexes:
            connection.execute(text(f"DROP INDEX {name}"))
        for statement in _FILL:
            names = {name: value for name, value in known.items() if f":{name}" in statement}
            connection.execute(text(statement), names)
        for _, definition in indexes:
            connection.execute(text(definition))
        count_states(connection)
        for table in _TABLES:
            connection.execute(
                text(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), "  # noqa: S608
                    f"(SELECT max(id) FROM {table}))"
                )
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def count_states(connection: Connection) -> None:
    """Do what the triggers on these tables would have done."""
    connection.execute(text("DELETE FROM tallies"))
    for table in ("series", "jobs", "deliveries"):
        connection.execute(
            text(
                "INSERT INTO tallies (what, state, number) "  # noqa: S608 - constants
                f"SELECT '{table}', state, count(*) FROM {table} GROUP BY state"
            )
        )


def result(slices: int = _SLICES) -> dict[str, Any]:
    """A result of two hips with so many slices each."""
    return {
        "study_instance_uid": "",
        "series_instance_uid": "2.25.2",
        "status": "scored",
        "reason": None,
        "unet_score": 0.0,
        "hips": [_hip(side, slices) for side in ("right", "left")],
        "model": {"id": "stir-unet", "version": "1.0", "sha256": "b" * 64},
        "quality": [{"code": "noisy_image", "text": "the signal of a head is low"}],
        "change": None,
        "priority": {"flag": False, "reason": None},
        "created_at": "2026-03-14T09:30:00+00:00",
        "supersedes": None,
        "artifacts": {},
    }


def _hip(side: str, slices: int) -> dict[str, Any]:
    groups = ("anterior", "central", "posterior")
    return {
        "side": side,
        "status": "scored",
        "reason": None,
        "unet_score": 0.0,
        "bme_score": 0.51234,
        "synovitis_score": 1.12345,
        "mean_ratio": 0.12345,
        "whole_volume_index": 0.0912,
        "slices_used": slices,
        "slices": [
            {
                "sop_instance_uid": f"2.25.3000000001{number:03d}",
                "instance_number": number,
                "group": groups[(number - 1) // 5],
                "ratio": 0.1 + number / 100,
                "head_mm2": 1500.25,
                "bme_mm2": 80.5,
                "synovitis_mm2": 60.75,
            }
            for number in range(1, slices + 1)
        ],
        "femoral_head_ml": 45.12,
        "bme_ml": 1.21,
        "synovitis_ml": 2.34,
        "effusion_mm": 4.12,
        "centre_mm": [-90.0, 5.0, 12.0],
        "radius_mm": 23.4,
        "confidence": 0.98,
    }
