"""Writes the audit log for the API. What cannot be recorded is neither shown nor done."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from hipscore.domain import Transient
from hipscore.store import audit
from hipscore.store import engine as database

#: the same look of the same visitor within so many seconds is one row: pages ask again and again
SAME_LOOK_SECONDS = 60.0
_REMEMBERED = 10_000

log = logging.getLogger(__name__)


class Unrecorded(Exception):
    """A row could not be written."""


class Trail:
    """The audit log as the API writes it. Safe to share between threads."""

    def __init__(self, writers: sessionmaker[Session]) -> None:
        self._writers = writers
        self._looks: OrderedDict[tuple[object, ...], float] = OrderedDict()
        self._lock = threading.Lock()

    def look(
        self,
        actor: audit.Actor,
        action: str,
        *,
        study: str | None = None,
        detail: Mapping[str, str] | None = None,
    ) -> None:
        """Record that something was looked at, once a minute for the same.

        Raises
        ------
        Unrecorded
            If that is not possible: what was asked for must not be shown then.
        """
        same = (actor, action, study, tuple((detail or {}).items()))
        now = time.monotonic()
        with self._lock:
            if now - self._looks.get(same, -SAME_LOOK_SECONDS) < SAME_LOOK_SECONDS:
                return
        self.act(actor, action, study=study, detail=detail)
        with self._lock:
            self._looks[same] = now
            self._looks.move_to_end(same)
            if len(self._looks) > _REMEMBERED:
                self._looks.popitem(last=False)

    def act(
        self,
        actor: audit.Actor,
        action: str,
        *,
        study: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Record what is about to be done. Of a job or a delivery the study is looked up.

        Raises
        ------
        Unrecorded
            If that is not possible: it must not be done then.
        """
        detail = dict(detail or {})
        try:
            with database.transaction(self._writers) as session:
                study = study or _study(detail, session)
                now = datetime.now(UTC)
                audit.append(actor, action, study=study, detail=detail, now=now, session=session)
        except (Transient, SQLAlchemyError) as error:
            log.critical("the audit log cannot be written: %s", type(error).__name__)
            raise Unrecorded from error


def _study(detail: Mapping[str, Any], session: Session) -> str | None:
    job_id, delivery_id = (_number(detail.get(name)) for name in ("job_id", "delivery_id"))
    if job_id is not None or delivery_id is not None:
        return audit.study_of(job_id=job_id, delivery_id=delivery_id, session=session)
    if "workitem" in detail:
        return audit.study_of(workitem_uid=detail["workitem"], session=session)
    return None


def _number(text: str | None) -> int | None:
    """The id of a row, if there can be one of that number."""
    return int(text) if text is not None and int(text) < 2**63 else None
