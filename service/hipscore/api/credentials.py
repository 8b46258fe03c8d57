"""Who a request comes from: a key in its head, or the cookie of a browser that logged in."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import logging
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import HTTPConnection

from hipscore.api.shared import Desk
from hipscore.api.trail import Trail, Unrecorded
from hipscore.domain import Transient
from hipscore.store import access, audit
from hipscore.store import engine as database
from hipscore.store.access import Holder, Role

#: failed logins an address may have within the window; then they are answered 429
FAILURES = 10
WINDOW_SECONDS = 60.0
_REMEMBERED = 10_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Who looks or acts.

    ``csrf`` is what forms (field ``csrf``) and scripts (header ``X-CSRF-Token``) must send
    back; ``session`` whether a browser is logged in, and can log out.
    """

    name: str
    role: Role
    csrf: str = ""
    session: bool = False


#: everybody, where no key is demanded
LOCAL = Visitor(name="local", role=Role.ADMIN)
#: whoever asks for what is open to everybody
NOBODY = Visitor(name="", role=Role.VIEWER)


class Refused(Exception):
    """A key opens nothing. All who knock in vain hear the same; the log has the name."""

    def __init__(self, text: str, *, wait_seconds: int | None = None) -> None:
        super().__init__(text)
        self.wait_seconds = wait_seconds


class Failures:
    """Counts failed logins of each address. Of this process alone, and forgotten at its end."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, address: str) -> int | None:
        """Note one more; seconds to wait if there were too many before it."""
        now = time.monotonic()
        with self._lock:
            times = self._times.setdefault(address, deque(maxlen=FAILURES))
            self._times.move_to_end(address)
            if len(self._times) > _REMEMBERED:
                self._times.popitem(last=False)
            if len(times) == FAILURES and now - times[0] < WINDOW_SECONDS:
                return max(1, round(WINDOW_SECONDS - (now - times[0])))
            times.append(now)
            return None


class Credentials:
    """Checks what visitors show. Its methods use the database: call them off the event loop."""

    def __init__(self, desk: Desk, trail: Trail) -> None:
        self._desk = desk
        self._trail = trail
        self._failures = Failures()

    def visitor(self, connection: HTTPConnection) -> Visitor | None:
        """Who it is, or None if nothing (that is still in force) was shown.

        A key in the head goes before a cookie.

        Raises
        ------
        Refused
            If a key was shown and opens nothing.
        Transient
            If the database cannot be asked.
        """
        shown = key_in(connection.headers.get("authorization"))
        if shown is not None:
            who = self.check(shown, address(connection))
            return Visitor(name=who.name, role=who.role)
        token = connection.cookies.get(cookie_name(self._desk, connection))
        if not token:
            return None
        now = datetime.now(UTC)
        with database.transaction(self._desk.readers) as session:
            found = access.in_session(token, now=now, session=session)
        if found is None:
            return None
        self._used(found, now)
        return Visitor(name=found.name, role=found.role, csrf=csrf_of(token), session=True)

    def check(self, key: str, where: str) -> Holder:
        """Whose key it is.

        Raises
        ------
        Refused
            If it is none, was revoked or has expired.
        """
        now = datetime.now(UTC)
        if not access.well_formed(key):
            raise self._refuse("mistyped", None, where, "this is no key: it is mistyped or cut off")
        with database.transaction(self._desk.readers) as session:
            found = access.holder(key, now=now, session=session)
        if found is None or found.refused is not None:
            why = "unknown" if found is None or found.refused is None else found.refused
            raise self._refuse(why, found, where, "this key opens nothing here")
        self._used(found, now)
        return found

    def _refuse(self, why: str, found: Holder | None, where: str, text: str) -> Refused:
        """Count, log and record it; after too many only count it.

        A key that is valid passes all the same: keys cannot be guessed, and nobody shall be
        able to lock others out who come from the same address, such as that of a proxy.
        """
        wait = self._failures.add(where)
        if wait is not None:
            return Refused("too many failed logins from this address", wait_seconds=wait)
        name = "unknown" if found is None else found.name
        log.warning("failed login from %s: key %s is %s", where, name, why)
        actor = audit.Actor(who=name, role="", address=where)
        with contextlib.suppress(Unrecorded):  # it is in the log, and nothing was shown
            self._trail.act(actor, "failed login", detail={"why": why})
        return Refused(text)

    def _used(self, who: Holder, now: datetime) -> None:
        if not access.stale(who, now):
            return
        try:
            with database.transaction(self._desk.writers) as session:
                access.used(who.key_id, now=now, session=session)
        except Transient as error:
            log.info("the last use of key %s is not noted: %s", who.name, error)


def key_in(header: str | None) -> str | None:
    """The key in an Authorization header: Bearer (RFC 6750), or Basic (RFC 7617) as password."""
    scheme, _, rest = (header or "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            _, _, password = base64.b64decode(rest.strip()).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return ""
        return password.strip()
    return None if header is None else ""


def address(connection: HTTPConnection) -> str:
    """Where it comes from: the other end, or what a trusted proxy says."""
    host = "" if connection.client is None else connection.client.host
    return "".join(character for character in host if character.isprintable())[:64]


def secure(connection: HTTPConnection) -> bool:
    """Whether the way to the browser is encrypted."""
    return connection.scope.get("scheme") in {"https", "wss"}


def cookie_name(desk: Desk, connection: HTTPConnection) -> str:
    """Name of our cookie.

    A browser shares cookies between ports, so the port is in it; ``__Host-`` (RFC 6265bis
    4.1.3.2) keeps another host, or this one without encryption, from setting it.
    """
    prefix = "__Host-" if secure(connection) else ""
    return f"{prefix}hipscore-{desk.settings.http_port}"


def csrf_of(token: str) -> str:
    """What forms of this session must send back; it does not give the cookie away."""
    return hmac.new(token.encode(), b"hipscore csrf", hashlib.sha256).hexdigest()
