"""What every route needs: the database, the spool, the broker, and the types of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from celery import Celery
from fastapi import Depends, Path, Query, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from hipscore.settings import Settings
from hipscore.spool import Spool

_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What the API works with."""

    settings: Settings
    engine: Engine
    readers: sessionmaker[Session]
    writers: sessionmaker[Session]
    spool: Spool
    broker: Celery


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


AtDesk = Annotated[Desk, Depends(_desk)]
#: as hipscore.header.is_uid
Uid = Annotated[
    str,
    Path(
        pattern=r"^[0-9]+(\.[0-9]+)*$",
        max_length=64,
        description="Study Instance UID (PS3.5 9.1)",
        examples=["1.2.826.0.1.3680043.8.498.1"],
    ),
]
RowId = Annotated[int, Path(ge=1, le=_LARGEST_ID)]
After = Annotated[
    int | None, Query(ge=1, le=_LARGEST_ID, description="from `next` of the previous page")
]
Limit = Annotated[int, Query(ge=1, le=200)]

#: error responses for OpenAPI; their bodies are filled in by problems.describe_in
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "unknown"}}
CONFLICT: dict[int | str, dict[str, Any]] = {409: {"description": "not possible now"}}
COMMON: dict[int | str, dict[str, Any]] = {
    422: {"description": "invalid parameter"},
    503: {"description": "the database or the disk cannot be used right now"},
}
