"""Keys for the API and the pages, and the sessions of browsers that logged in with one.

A key has 256 random bits, so that its SHA-256 needs no salt and no slow hash: it is found by
that digest, and nothing about the time it takes tells how much of a guess was right. Neither
keys nor cookies are ever stored themselves.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hipscore.store.moves import NotFound
from hipscore.store.tables import AccessKey, AccessSession

#: a browser stays logged in so long
SESSION_LIFE = timedelta(hours=12)
#: ``last_used_at`` is written at most so often
USE_STEP = timedelta(minutes=1)

_PREFIX = "hips_"
_FORM = re.compile(rf"{_PREFIX}(?P<secret>[0-9a-f]{{64}})(?P<check>[0-9a-f]{{8}})")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?")
#: who stands in the audit log without a key
RESERVED = frozenset({"local", "unknown", "service", "command line"})


class Role(StrEnum):
    """What the holder of a key may do; each may what the one before may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def may(self, needed: Role) -> bool:
        """Whether this role is enough where ``needed`` is demanded."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


class NotAllowed(ValueError):
    """A key cannot be made so; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Whose key it is. ``refused`` says why it does not open anything (any more)."""

    key_id: int
    name: str
    role: Role
    refused: str | None
    last_used_at: datetime | None


def well_formed(key: str) -> bool:
    """Whether this has the form and the check digits of a key: a mistyped one has not."""
    found = _FORM.fullmatch(key)
    return found is not None and _check(found["secret"]) == found["check"]


def create(
    name: str, role: Role, *, days: float | None = None, now: datetime, session: Session
) -> str:
    """Make a key and return it: this is the only time that it can be seen.

    Raises
    ------
    NotAllowed
        If the name is taken (also by a revoked key: the audit log names keys), or is none.
    """
    if not _NAME.fullmatch(name) or name.lower() in RESERVED:
        msg = f"{name!r} cannot name a key; use up to 64 letters, digits, '.', '-', '_' or '@'"
        raise NotAllowed(msg)
    key = _new()
    session.add(
        AccessKey(
            name=name,
            role=role.value,
            sha256=_digest(key),
            created_at=now,
            expires_at=None if days is None else now + timedelta(days=days),
        )
    )
    try:
        session.flush()
    except IntegrityError as error:
        msg = f"there is or was a key {name}; a name is never used again, choose another"
        raise NotAllowed(msg) from error
    return key


def everyone(*, session: Session) -> Sequence[AccessKey]:
    """All keys that ever were, oldest first."""
    return session.scalars(select(AccessKey).order_by(AccessKey.id)).all()


def anyone(*, now: datetime, session: Session) -> bool:
    """Whether there is a key that opens anything."""
    valid = select(AccessKey.id).where(
        AccessKey.revoked_at.is_(None),
        or_(AccessKey.expires_at.is_(None), AccessKey.expires_at > now),
    )
    return session.scalars(valid.limit(1)).first() is not None


def revoke(name: str, *, now: datetime, session: Session) -> AccessKey:
    """End a key and the sessions that were opened with it. Once is enough; twice is no error.

    Raises
    ------
    NotFound
        If there is no key of this name.
    """
    key = session.scalars(select(AccessKey).where(AccessKey.name == name)).one_or_none()
    if key is None:
        msg = f"there is no key {name}; hipscore keys list shows them"
        raise NotFound(msg)
    if key.revoked_at is None:
        key.revoked_at = now
    session.execute(
        delete(AccessSession).where(AccessSession.key_id == key.id),
        execution_options={"synchronize_session": False},
    )
    return key


def holder(key: str, *, now: datetime, session: Session) -> Holder | None:
    """Whose key this is, or None if nobody ever had it."""
    query = select(AccessKey).where(AccessKey.sha256 == _digest(key))
    found = session.scalars(query).one_or_none()
    return None if found is None else _holder(found, now)


def used(key_id: int, *, now: datetime, session: Session) -> None:
    """Remember that the key is in use, if the last time is more than a minute ago."""
    before = or_(AccessKey.last_used_at.is_(None), AccessKey.last_used_at < now - USE_STEP)
    session.execute(
        update(AccessKey).where(AccessKey.id == key_id, before).values(last_used_at=now),
        execution_options={"synchronize_session": False},
    )


def stale(who: Holder, now: datetime) -> bool:
    """Whether :func:`used` would write something."""
    return who.last_used_at is None or who.last_used_at < now - USE_STEP


def open_session(key_id: int, *, now: datetime, session: Session) -> str:
    """Log a browser in: return what its cookie is to hold. Sessions that are over are removed."""
    token = secrets.token_urlsafe(32)
    session.execute(
        delete(AccessSession).where(AccessSession.expires_at <= now),
        execution_options={"synchronize_session": False},
    )
    session.add(
        AccessSession(
            sha256=_digest(token), key_id=key_id, created_at=now, expires_at=now + SESSION_LIFE
        )
    )
    session.flush()
    return token


def in_session(token: str, *, now: datetime, session: Session) -> Holder | None:
    """Who logged in with this cookie; None if it is over, also because its key is."""
    query = (
        select(AccessKey)
        .join(AccessSession, AccessSession.key_id == AccessKey.id)
        .where(AccessSession.sha256 == _digest(token), AccessSession.expires_at > now)
    )
    key = session.scalars(query).one_or_none()
    who = None if key is None else _holder(key, now)
    return who if who is not None and who.refused is None else None


def close_session(token: str, *, session: Session) -> None:
    """Log a browser out."""
    session.execute(
        delete(AccessSession).where(AccessSession.sha256 == _digest(token)),
        execution_options={"synchronize_session": False},
    )


def _holder(key: AccessKey, now: datetime) -> Holder:
    refused = None
    if key.revoked_at is not None:
        refused = "revoked"
    elif key.expires_at is not None and key.expires_at <= now:
        refused = "expired"
    return Holder(
        key_id=key.id,
        name=key.name,
        role=Role(key.role),
        refused=refused,
        last_used_at=key.last_used_at,
    )


def _new() -> str:
    secret = secrets.token_hex(32)
    return f"{_PREFIX}{secret}{_check(secret)}"


def _check(secret: str) -> str:
    return f"{zlib.crc32(secret.encode()):08x}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
