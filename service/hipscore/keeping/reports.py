"""Earlier reports that arrive: only what they say is kept, and nothing of other documents."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy.orm import Session, sessionmaker

from hipscore.domain import StudyIdentity
from hipscore.header import Unreadable, read_header, read_image
from hipscore.identity import identity
from hipscore.reporting.earlier import EarlierReport, read_document
from hipscore.reporting.header import silently
from hipscore.store import earlier
from hipscore.store import engine as database

#: our reports have some hundred KB; what is larger is not looked into
LARGEST = 16 * 1024 * 1024


class NotOurs(Exception):
    """The document is no report of hipscore on a patient with an ID; it is not kept."""


def read_arrived(
    data: bytes | bytearray, announced: tuple[str, str] | None = None
) -> tuple[EarlierReport, StudyIdentity]:
    """What a report in a Part 10 file says, and whose it is: somebody with a key.

    Parameters
    ----------
    data
        The whole file (PS3.10 7.1).
    announced
        SOP Class UID and SOP Instance UID that the request named; the object has to agree.

    Raises
    ------
    hipscore.header.Unreadable
        If it does not say what it is, or is not what was announced.
    NotOurs
        If it is something else than a report of ours.
    """
    if len(data) > LARGEST:
        msg = "not a hipscore report: too large"
        raise NotOurs(msg)
    header = read_header(data)
    if announced is not None and announced != (header.sop_class_uid, header.sop_instance_uid):
        msg = "SOP Class UID or SOP Instance UID differs from the command's"
        raise Unreadable(msg)
    with silently():
        dataset = read_image(bytes(data))
        report, whose = read_document(dataset), identity(dataset)
    if report is None:
        msg = "not a hipscore report"
        raise NotOurs(msg)
    if whose.patient_key is None:
        msg = "not a hipscore report of a patient with an ID"
        raise NotOurs(msg)
    return report, whose


def keep_report(
    data: bytes | bytearray,
    announced: tuple[str, str] | None = None,
    *,
    sessions: sessionmaker[Session],
) -> None:
    """Keep what a report says; when this returns, its row is committed.

    Raises
    ------
    hipscore.header.Unreadable, NotOurs
        As :func:`read_arrived`.
    hipscore.domain.Transient
        If the database cannot be used now.
    """
    report, whose = read_arrived(data, announced)
    with database.transaction(sessions) as session:
        earlier.keep(report, whose=whose, now=datetime.now(UTC), session=session)
