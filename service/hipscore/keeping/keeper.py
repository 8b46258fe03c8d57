"""One object on its way to stable storage: room, header, spool, row."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

from sqlalchemy.orm import Session, sessionmaker

from hipscore.domain import ReceivedInstance
from hipscore.header import Unreadable, read_header
from hipscore.keeping.recorder import Recorder
from hipscore.keeping.room import Room
from hipscore.settings import Settings
from hipscore.spool import SETTLED_S, Spool
from hipscore.store.recording import Arrival, Verdict

_MB = 1024 * 1024


class Refusal(Enum):
    """Why an object is not kept; each way of arrival has its own codes for them.

    NO_ROOM is for now, and the sender may try again. UNREADABLE and MISPLACED are for ever.
    """

    NO_ROOM = "no room"
    UNREADABLE = "unreadable"
    MISPLACED = "misplaced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bringer:
    """Who brings an object: AE titles (``STOW-RS`` calls itself so), address, and the visit.

    ``visit`` is one association or one request: what it brought is complete when it ends.
    """

    calling_aet: str
    called_aet: str
    peer: str
    visit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What became of one object. ``refusal`` is None when it is kept, durably.

    ``text`` says why not, and holds nothing of the object but UIDs. ``conflict``: it came
    before with other content, and that is kept. ``series_id`` is its series, if it has one.
    """

    instance: ReceivedInstance | None = None
    refusal: Refusal | None = None
    text: str = ""
    series_id: int | None = None
    conflict: bool = False


class Keeper:
    """Keeps objects. Thread safe."""

    def __init__(
        self, settings: Settings, *, sessions: sessionmaker[Session], spool: Spool
    ) -> None:
        self._recorder = Recorder(sessions)
        self._spool = spool
        self._room = Room(spool, reserve=settings.reserve_mb * _MB)
        self.largest = settings.max_object_mb * _MB

    def keep(
        self,
        data: bytes | bytearray,
        bringer: Bringer,
        *,
        announced: tuple[str, str] | None = None,
        study: str | None = None,
    ) -> Kept:
        """Keep one Part 10 object; when this returns without a refusal, it is durable.

        Parameters
        ----------
        data
            The whole file (PS3.10 7.1).
        bringer
            Who brings it.
        announced
            SOP Class UID and SOP Instance UID that the request named; the object has to agree.
        study
            Study Instance UID that the request was made for; the object has to be of it.

        Raises
        ------
        hipscore.domain.Transient, OSError
            If spool or database cannot be used now.
        """
        if len(data) > self.largest:
            return Kept(
                refusal=Refusal.NO_ROOM, text=f"object larger than {self.largest // _MB} MB"
            )
        try:
            instance = read_header(data)
        except Unreadable as error:
            return Kept(refusal=Refusal.UNREADABLE, text=str(error))
        if announced is not None and (different := _contradiction(instance, announced)):
            return Kept(instance=instance, refusal=Refusal.UNREADABLE, text=different)
        if study is not None and instance.study_instance_uid != study:
            text = "it is of another study than the request"
            return Kept(instance=instance, refusal=Refusal.MISPLACED, text=text)
        return self._store(instance, data, bringer)

    def _store(self, instance: ReceivedInstance, data: bytes | bytearray, bringer: Bringer) -> Kept:
        """Put the bytes into the spool, then the row into the database."""
        began = time.monotonic()
        with self._room.taken(len(data)) as enough:
            if not enough:
                text = f"less than {self._room.reserve // _MB} MB of disk left"
                return Kept(instance=instance, refusal=Refusal.NO_ROOM, text=text)
            key = self._spool.put(data, sha256=instance.sha256).key
        recorded = self._recorder.record(
            Arrival(
                instance=instance,
                spool_key=key,
                calling_aet=bringer.calling_aet,
                called_aet=bringer.called_aet,
                peer=bringer.peer,
                association_id=bringer.visit,
            )
        )
        if time.monotonic() - began > SETTLED_S / 2:
            # A purge may have taken the file for one that nobody records any more.
            text = "storing it took too long; send it again"
            return Kept(instance=instance, refusal=Refusal.NO_ROOM, text=text)
        if recorded.verdict is Verdict.MISPLACED:
            text = "series is known in another study"
            return Kept(instance=instance, refusal=Refusal.MISPLACED, text=text)
        if recorded.verdict is Verdict.CHANGED:
            text = "known with other content, which was purged"
            return Kept(instance=instance, refusal=Refusal.MISPLACED, text=text)
        return Kept(
            instance=instance,
            series_id=recorded.series_id,
            conflict=recorded.verdict is Verdict.CONFLICT,
        )


def _contradiction(instance: ReceivedInstance, announced: tuple[str, str]) -> str | None:
    """What the data set says of itself and the request says otherwise."""
    if instance.sop_instance_uid != announced[1]:
        return "SOP Instance UID differs from the command's"
    if instance.sop_class_uid != announced[0]:
        return "SOP Class UID differs from the command's"
    return None
