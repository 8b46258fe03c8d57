"""The audit log for administrators: who looked at what, and who did what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import AwareDatetime, BaseModel, Field

from hipscore.api.shared import COMMON, After, AtDesk, Limit
from hipscore.store import audit
from hipscore.store import engine as database
from hipscore.store.tables import AuditEvent

router = APIRouter(tags=["access"], responses=COMMON)

#: times that stay times in every zone
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


class AuditLine(BaseModel):
    """One row of the audit log."""

    id: int
    at: datetime
    who: str = Field(description="name of a key, `local`, `unknown`, `service` or `command line`")
    role: str
    action: str
    study_instance_uid: str | None
    address: str
    detail: dict[str, Any]


class AuditPage(BaseModel):
    """Rows of the audit log, newest first. `next` is the path of the next page."""

    items: list[AuditLine]
    next: str | None


@router.get("/audit", response_model=AuditPage)
def list_audit(
    *,
    request: Request,
    desk: AtDesk,
    study: Annotated[
        str | None, Query(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64, description="only of this")
    ] = None,
    who: Annotated[str | None, Query(max_length=64, description="only by this key")] = None,
    since: Annotated[
        AwareDatetime | None, Query(ge=_FIRST, le=_LAST, description="only from then on")
    ] = None,
    after: After = None,
    limit: Limit = 50,
) -> AuditPage:
    """List who looked at what and who did what, newest first. For the role `admin`."""
    name = None if who is None else who.replace("\0", "")  # PostgreSQL takes no NUL
    with database.transaction(desk.readers) as session:
        rows = audit.events(
            study=study, who=name, since=since, after=after, limit=limit, session=session
        )
    following = None
    if len(rows) == limit:
        kept = {
            "study": study,
            "who": name,
            "since": None if since is None else since.astimezone(UTC).isoformat(),
            "after": rows[-1].id,
            "limit": limit,
        }
        query = urlencode({key: value for key, value in kept.items() if value is not None})
        following = f"{request.scope.get('root_path', '')}/audit?{query}"
    return AuditPage(items=[_line(row) for row in rows], next=following)


def _line(row: AuditEvent) -> AuditLine:
    return AuditLine(
        id=row.id,
        at=row.at,
        who=row.who,
        role=row.role,
        action=row.action,
        study_instance_uid=row.study_instance_uid,
        address=row.address,
        detail=row.detail,
    )
