"""Closing a series: close, match and open its job, in the caller's one transaction."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from hipscore import lifecycle
from hipscore.domain import ModelCard
from hipscore.store import intake
from hipscore.store.tables import Job


def settle(
    series_id: int,
    reason: lifecycle.CloseReason,
    *,
    card: ModelCard,
    now: datetime,
    session: Session,
    quiet_before: datetime | None = None,
) -> Job | None:
    """Close the series on ``reason`` and, if it matches, open its job for this bundle.

    Returns
    -------
    Job or None
        None when the series was closed already, has got an image since ``quiet_before``,
        or is ignored (a scout).
    """
    if not intake.close(series_id, reason, now=now, session=session, quiet_before=quiet_before):
        return None
    arrived = intake.evidence(series_id, session=session)
    matched, rule = lifecycle.match(image.image_type for image in arrived)
    intake.match(series_id, matched=matched, rule=rule, now=now, session=session)
    if not matched:
        return None
    return intake.open_job(
        series_id,
        bundle_id=card.id,
        bundle_version=card.version,
        bundle_sha256=card.sha256,
        now=now,
        session=session,
    )
