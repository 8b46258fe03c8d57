"""A database as a large site has it after two years: a million analyses, and today's work.

The analyses come from :mod:`benchmarks.pages.filling`; here is what is open beside them.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine, text

from benchmarks.pages import filling

#: one study of so many has all 24 images, the others one: 24 million rows take an hour
WHOLE = 20
#: what the reaper finds
RECEIVING, DUE, UNCOMMITTED, SENDING, QUEUED = 200, 500, 300, 8, 400
#: other series of the study that no rule takes: localizer, T1, T2
IGNORED = 4
#: images that were refused, and are named in the ledger alone
REFUSED = 300
_WEEK = timedelta(days=7)

_OPEN = (
    # of the studies of the last week
    """
    INSERT INTO series (study_instance_uid, series_instance_uid, state, close_reason, match_rule,
        calling_aet, called_aet, peer, first_received_at, last_received_at, closed_at)
    SELECT study_instance_uid, '2.25.7' || lpad(id::text, 9, '0') || i, 'IGNORED',
        'expected_count', CASE i WHEN 1 THEN 'localizer' ELSE 'no_rule' END, 'SCANNER',
        'HIPSCORE', '10.0.0.7', first_received_at, last_received_at, closed_at
    FROM series, generate_series(1, :ignored) i
    WHERE first_received_at > now() - CAST(:week AS interval)
    """,
    """
    INSERT INTO series (study_instance_uid, series_instance_uid, state, calling_aet, called_aet,
        peer, first_received_at, last_received_at)
    SELECT study_instance_uid, '2.25.8' || lpad(id::text, 9, '0'), 'RECEIVING', 'SCANNER',
        'HIPSCORE', '10.0.0.7', now() - interval '10 minutes',
        now() - random() * interval '5 minutes'
    FROM (SELECT * FROM series ORDER BY id DESC OFFSET :ignored * 20 LIMIT :receiving) newest
    """,
    """
    INSERT INTO instances (series_id, sop_class_uid, sop_instance_uid, transfer_syntax_uid,
        sha256, spool_key, size, instance_number, number_of_frames, images_in_acquisition,
        position_mm, orientation, image_type, association_id, received_at)
    SELECT id, '1.2.840.10008.5.1.4.1.1.4', series_instance_uid || '.' || i,
        '1.2.840.10008.1.2.1', md5(id || '.' || i) || md5(i || '.' || id),
        left(md5(id || '/' || i), 2) || '/' || md5(i || '/' || id) || left(md5(id || '/' || i), 30),
        295000, i, 1, 24, jsonb_build_array(-180, -60 + 5 * i, 180),
        '[1, 0, 0, 0, 0, -1]'::jsonb, '["ORIGINAL", "PRIMARY", "M"]'::jsonb, md5(id::text),
        last_received_at
    FROM series, generate_series(1, 12) i
    WHERE series_instance_uid LIKE '2.25.8%' OR series_instance_uid LIKE '2.25.7%' AND i = 1
    """,
    # an item for each analysis; their data sets are of the size of real ones
    """
    INSERT INTO workitems (sop_instance_uid, state, job_id, study_instance_uid, label, priority,
        attributes, version, created_at, updated_at)
    SELECT '2.25.9' || lpad(jobs.id::text, 9, '0'),
        CASE jobs.state WHEN 'QUEUED' THEN 'SCHEDULED' WHEN 'FAILED' THEN 'CANCELED'
            ELSE 'COMPLETED' END,
        jobs.id, study_instance_uid, 'UNet-score', 'MEDIUM',
        jsonb_build_object('00080018', jsonb_build_object('vr', 'UI', 'Value',
            jsonb_build_array('2.25.9' || jobs.id)), '0020000D',
            jsonb_build_object('vr', 'UI', 'Value', jsonb_build_array(study_instance_uid)),
            '00404021', jsonb_build_object('vr', 'SQ', 'Value', '[]'::jsonb),
            '00741202', jsonb_build_object('vr', 'LO', 'Value', jsonb_build_array(
                CASE WHEN jobs.id % :whole = 0 THEN repeat(md5(jobs.id::text), 60) ELSE '' END))),
        3, jobs.created_at, jobs.created_at
    FROM jobs JOIN series ON series.id = jobs.series_id
    """,
    """
    INSERT INTO workitem_events (at, workitem_uid, event_type, body)
    SELECT created_at, sop_instance_uid, 1, '{"report": {"00741000": {"vr": "CS"}}}'::jsonb
    FROM workitems, generate_series(1, 3)
    """,
    """
    UPDATE deliveries SET state = 'PENDING', attempts = 0, status = NULL, finished_at = NULL
    WHERE id IN (SELECT id FROM deliveries WHERE state = 'COMMITTED' ORDER BY id DESC LIMIT :due)
    """,
    """
    UPDATE deliveries SET state = 'SENT', commit_at = now(), form_id = artifact_id
    WHERE id IN (SELECT id FROM deliveries WHERE state = 'COMMITTED'
        ORDER BY id DESC LIMIT :uncommitted)
    """,
    """
    UPDATE deliveries SET state = 'SENDING', lease = 'host/1/x', finished_at = NULL,
        lease_until = now() + interval '1 hour'
    WHERE id IN (SELECT id FROM deliveries WHERE state = 'COMMITTED'
        ORDER BY id DESC LIMIT :sending)
    """,
    """
    INSERT INTO events (at, series_id, what, detail)
    SELECT last_received_at, id, 'conflict', jsonb_build_object('sop_instance_uid', '2.25.6' || id,
        'study_instance_uid', study_instance_uid, 'series_instance_uid', series_instance_uid)
    FROM series WHERE id <= :refused
    """,
)


def fill(engine: Engine, count: int, *, whole: int = WHOLE) -> None:
    """Two years of a site with so many analyses; images are kept 30 days, results a year."""
    filling.fill(
        engine,
        count,
        every=whole,
        queued=QUEUED,
        minutes=2 * 365 * 24 * 60 / count,
        images_kept=timedelta(days=30),
        results_kept=timedelta(days=365),
    )
    known = {
        "ignored": IGNORED,
        "week": _WEEK,
        "whole": whole,
        "receiving": RECEIVING,
        "due": DUE,
        "uncommitted": UNCOMMITTED,
        "sending": SENDING,
        "refused": REFUSED,
    }
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in _OPEN:
            names = {name: value for name, value in known.items() if f":{name}" in statement}
            connection.execute(text(statement), names)
        filling.count_states(connection)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
