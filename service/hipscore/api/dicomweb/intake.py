"""One object after the other into the hands of the keeper, and what came of each."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from sqlalchemy.exc import SQLAlchemyError

from hipscore import inference
from hipscore.api.dicomweb.multipart import Part
from hipscore.api.shared import Desk
from hipscore.domain import Transient
from hipscore.header import Unreadable
from hipscore.keeping import (
    SOP_CLASSES,
    Bringer,
    Closing,
    Keeper,
    Kept,
    Refusal,
    file_meta,
    tidied,
    transfer_syntaxes,
    visit_broken,
    visit_ended,
)
from hipscore.keeping.part10 import FileMeta
from hipscore.keeping.rules import load_rules
from hipscore.keeping.visits import where

#: how images that came this way are told from those of an association
CALLING_AET = "STOW-RS"

# Failure Reason (0008,1197) and Warning Reason (0008,1196), PS3.18 I.2.1 and I.2.2; those in
# 0xCxxx as the listener answers them.
OUT_OF_RESOURCES = 0xA700
PROCESSING_FAILURE = 0x0110
SOP_CLASS_NOT_SUPPORTED = 0x0122
TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122
CANNOT_UNDERSTAND = 0xC210
MISPLACED = 0xC211
COERCED = 0xB000
_REASONS = {
    Refusal.NO_ROOM: OUT_OF_RESOURCES,
    Refusal.UNREADABLE: CANNOT_UNDERSTAND,
    Refusal.MISPLACED: MISPLACED,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What became of one object; its UIDs are empty where they could not be read.

    ``failure`` and ``warning`` are the codes of PS3.18 I.2; ``passing``: later it may be kept.
    """

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    failure: int | None = None
    warning: int | None = None
    passing: bool = False


@dataclass(slots=True)
class Visit:
    """One request: who sends, what became of each object, which images of which series came."""

    bringer: Bringer
    study: str | None
    stored: list[Stored] = field(default_factory=list)
    images: dict[int, set[str]] = field(default_factory=dict)


class Intake:
    """What all requests share. Thread safe."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._most = desk.settings.max_associations
        self._inside = 0
        self._lock = threading.Lock()
        self.keeper = Keeper(desk.settings, sessions=desk.writers, spool=desk.spool)

    @cached_property
    def _closing(self) -> Closing:
        settings = self._desk.settings
        return Closing(
            card=inference.open_bundle(settings.bundle_dir).card,
            rules=load_rules(settings),
            sessions=self._desk.writers,
            spool=self._desk.spool,
        )

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Whether there is a place for one more request; it is held while inside."""
        with self._lock:
            free = self._inside < self._most
            self._inside += free
        try:
            yield free
        finally:
            with self._lock:
                self._inside -= free

    def take(self, part: Part, visit: Visit) -> None:
        """Keep one object; what became of it is in the visit."""
        meta: FileMeta | None = None
        try:
            if part.media_type not in {"", "application/dicom"}:
                msg = "a part is not application/dicom"
                raise Unreadable(msg)  # noqa: TRY301 - one place names what cannot be read
            meta = file_meta(part.data)
            stored, text = self._keep(part, meta, visit)
        except Unreadable as error:
            stored, text = Stored(failure=CANNOT_UNDERSTAND), str(error)
        except (SQLAlchemyError, Transient, OSError) as error:
            stored = _not_kept(meta, OUT_OF_RESOURCES, passing=True)
            text = f"cannot be stored now: {where(error)}"
        except Exception as error:  # noqa: BLE001 - a defect must not look like success
            log.error("STOW-RS from %s failed: %s", visit.bringer.peer, where(error))  # noqa: TRY400
            stored, text = _not_kept(meta, PROCESSING_FAILURE), "internal error"
        if stored.failure is not None:
            log.warning(
                "STOW-RS from %s answered 0x%04X: %s (SOP instance %s)",
                visit.bringer.peer,
                stored.failure,
                text,
                stored.sop_instance_uid or "unknown",
            )
        visit.stored.append(stored)

    def _keep(self, part: Part, meta: FileMeta, visit: Visit) -> tuple[Stored, str]:
        if part.too_large:
            text = f"object larger than {self._desk.settings.max_object_mb} MB"
            return _not_kept(meta, OUT_OF_RESOURCES), text
        if meta.sop_class_uid not in SOP_CLASSES:
            return _not_kept(meta, SOP_CLASS_NOT_SUPPORTED), "SOP class not supported"
        if meta.transfer_syntax_uid not in transfer_syntaxes():
            return _not_kept(meta, TRANSFER_SYNTAX_NOT_SUPPORTED), "transfer syntax not supported"
        announced = (meta.sop_class_uid, meta.sop_instance_uid)
        data = tidied(part.data, meta)
        kept = self.keeper.keep(data, visit.bringer, announced=announced, study=visit.study)
        if kept.refusal is not None or kept.series_id is None:
            refusal = kept.refusal or Refusal.NO_ROOM
            passing = refusal is Refusal.NO_ROOM
            return _not_kept(meta, _REASONS[refusal], passing=passing), kept.text
        visit.images.setdefault(kept.series_id, set()).add(meta.sop_instance_uid)
        return _kept(meta, kept, visit), ""

    def end(self, visit: Visit) -> None:
        """Close what the request proves complete. Never raises."""
        if not visit.images:
            return
        try:
            closing = self._closing
        except Exception as error:  # noqa: BLE001 - what came is kept; the reaper has a bundle
            log.error("what came stays open until it is quiet: %s", where(error))  # noqa: TRY400
            return
        count = sum(map(len, visit.images.values()))
        log.info("STOW-RS from %s ended after %d images", visit.bringer.peer, count)
        visit_ended(
            visit.images,
            closing=closing,
            sessions=self._desk.writers,
            broker=self._desk.broker,
            whole=False,
        )

    def broke(self, visit: Visit) -> None:
        """Write down that the request ended before its body did. Never raises."""
        if visit.images:
            count = sum(map(len, visit.images.values()))
            log.warning("STOW-RS from %s broke off after %d images", visit.bringer.peer, count)
            visit_broken(visit.images, sessions=self._desk.writers)


def _kept(meta: FileMeta, kept: Kept, visit: Visit) -> Stored:
    if kept.conflict:
        log.warning(
            "SOP instance %s came again from %s with other content; the first is kept",
            meta.sop_instance_uid,
            visit.bringer.peer,
        )
    return Stored(
        sop_class_uid=meta.sop_class_uid,
        sop_instance_uid=meta.sop_instance_uid,
        # what is known under this UID differs from what was sent
        warning=COERCED if kept.conflict else None,
    )


def _not_kept(meta: FileMeta | None, reason: int, *, passing: bool = False) -> Stored:
    return Stored(
        sop_class_uid=meta.sop_class_uid if meta else "",
        sop_instance_uid=meta.sop_instance_uid if meta else "",
        failure=reason,
        passing=passing,
    )
