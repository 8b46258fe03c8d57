"""Earlier reports in the PACS: found by C-FIND, brought by C-GET, or else by C-MOVE to us.

PS3.4 annex C, study root, one association. What is brought is returned as bytes and read by
nobody here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from hipscore.addresses import Peer
from hipscore.attributes import text
from hipscore.domain import Outcome
from hipscore.header import is_uid
from hipscore.pacs.association import DEFAULT_TIMEOUTS, Timeouts, associate, drop, leave
from hipscore.pacs.query import find

_FIND = StudyRootQueryRetrieveInformationModelFind
_GET = StudyRootQueryRetrieveInformationModelGet
_MOVE = StudyRootQueryRetrieveInformationModelMove
_REPORTS = (Comprehensive3DSRStorage, ComprehensiveSRStorage)
_SYNTAXES: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]

#: of so many studies of a patient, the newest, reports are looked for
_MOST_STUDIES = 20
#: so many reports are brought at most
_MOST_REPORTS = 40
#: a patient with more studies, or a series with more objects, is not asked about to the end
_MOST_MATCHES = 2000
_PENDING = frozenset({0xFF00, 0xFF01})
_SUCCESS = 0x0000
_REFUSED = 0xA700  # PS3.4 table B.2-1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """One object that came by C-GET: its encoded data set, unread, and what was said of it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """What came of looking for earlier reports.

    Parameters
    ----------
    objects
        What came by C-GET.
    moved
        SOP Instance UIDs of those that the PACS said it sent to our listener.
    found
        SOP Instance UIDs of all that may be ours, known ones too.
    silent
        Why not everything was looked at, in one line; None when it was.
    """

    objects: tuple[Arrived, ...] = ()
    moved: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    silent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where one report is."""

    study: str
    series: str
    instance: str


def bring_reports(
    peer: Peer,
    patient_id: str,
    *,
    until_date: str,
    other_than: str,
    known: Collection[str],
    calling_aet: str,
    seconds: float,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Brought:
    """Bring reports that may be ours from the studies of a patient.

    Parameters
    ----------
    peer
        The PACS.
    patient_id
        Patient ID (0010,0020). Who issued it stands in the reports.
    until_date
        Studies of a later day are left alone.
    other_than
        Study Instance UID of the study that is left alone.
    known
        SOP Instance UIDs that need not be brought.
    calling_aet
        Our AE title: a C-MOVE sends to it.
    seconds
        How long it may take in all.
    timeouts
        For the association and each answer.
    """
    contexts = [build_context(model) for model in (_FIND, _GET, _MOVE)]
    contexts += [build_context(report, _SYNTAXES) for report in _REPORTS]
    arrived: list[Arrived] = []
    association = associate(
        peer,
        contexts,
        calling_aet,
        timeouts,
        [(evt.EVT_C_STORE, partial(_on_store, arrived=arrived))],
        roles=[build_role(report, scp_role=True) for report in _REPORTS],
    )
    if isinstance(association, Outcome):
        return Brought(silent=association.text)
    until = time.monotonic() + seconds
    places: list[_Place] = []
    moved: tuple[str, ...] = ()
    try:
        for each in _look(association, patient_id, until_date, other_than, until):
            places.append(each)  # noqa: PERF402 - what was found before it failed counts
        wanted = [each for each in places if each.instance not in known][:_MOST_REPORTS]
        moved = _bring(association, wanted, calling_aet, until)
    except Exception as error:  # noqa: BLE001 - whatever a damaged answer makes the parser raise
        drop(association)  # it may still be sending
        log.warning("%s cannot be asked for earlier reports: %s", peer, type(error).__name__)
        silent: str | None = f"{peer} did not answer to the end"
    else:
        leave(association)
        silent = None
    return Brought(
        objects=tuple(arrived),
        moved=moved,
        found=tuple(each.instance for each in places),
        silent=silent,
    )


class _Late(Exception):
    """There is no time left, or the peer failed."""


def _left(until: float) -> float:
    """Seconds left. Raises _Late if there are none."""
    left = until - time.monotonic()
    if left <= 0:
        msg = "no time left"
        raise _Late(msg)
    return left


def _look(
    association: Association, patient_id: str, until_date: str, other_than: str, until: float
) -> Iterator[_Place]:
    """The reports that may be ours, by descending the hierarchy (PS3.4 C.4.1.2.2.1)."""

    def ask(level: str, **keys: str) -> list[Dataset]:
        query = Dataset()
        query.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            setattr(query, keyword, value)
        if not patient_id.isascii():
            query.SpecificCharacterSet = "ISO_IR 192"
        return find(association, query, seconds=_left(until), most=_MOST_MATCHES)

    studies = ask("STUDY", PatientID=patient_id, StudyInstanceUID="", StudyDate="")
    dates = {
        text(each, "StudyInstanceUID"): text(each, "StudyDate")
        for each in studies
        if text(each, "PatientID") == patient_id and text(each, "StudyDate") <= until_date
    }
    newest = sorted((uid for uid in dates if is_uid(uid)), key=dates.__getitem__, reverse=True)
    for study in [uid for uid in newest if uid != other_than][:_MOST_STUDIES]:
        asked = {"StudyInstanceUID": study, "Modality": "SR"}
        for series in ask("SERIES", **asked, SeriesInstanceUID="", SeriesDescription=""):
            uid = text(series, "SeriesInstanceUID")
            if not (_may_be_ours(series) and is_uid(uid)):
                continue
            place = {"StudyInstanceUID": study, "SeriesInstanceUID": uid}
            for image in ask("IMAGE", **place, SOPInstanceUID="", SOPClassUID=""):
                instance, kind = text(image, "SOPInstanceUID"), text(image, "SOPClassUID")
                if is_uid(instance) and kind in {"", *_REPORTS}:
                    yield _Place(study=study, series=uid, instance=instance)


def _may_be_ours(series: Dataset) -> bool:
    """By its modality and description; a PACS may leave them out."""
    described = text(series, "SeriesDescription").casefold()
    return text(series, "Modality") in {"", "SR"} and (not described or "hipscore" in described)


def _bring(
    association: Association, wanted: Sequence[_Place], calling_aet: str, until: float
) -> tuple[str, ...]:
    """Have the peer send them over this association, or else to our listener.

    Returns the SOP Instance UIDs of those sent to our listener.
    """
    accepted = {str(each.abstract_syntax) for each in association.accepted_contexts}
    over_this = _GET in accepted and any(
        each.as_scp and each.abstract_syntax in _REPORTS for each in association.accepted_contexts
    )
    moved = []
    for place in wanted:
        request = Dataset()
        request.QueryRetrieveLevel = "IMAGE"
        request.StudyInstanceUID = place.study
        request.SeriesInstanceUID = place.series
        request.SOPInstanceUID = place.instance
        get = partial(association.send_c_get, request, _GET)
        if over_this and _done(get, until):
            continue
        move = partial(association.send_c_move, request, calling_aet, _MOVE)
        if _MOVE in accepted and association.is_established and _done(move, until):
            moved.append(place.instance)
    return tuple(moved)


def _done(retrieve: Callable[[], Iterator[tuple[Dataset, Dataset | None]]], until: float) -> bool:
    """Whether the peer says that everything was sent. Raises _Late."""
    for status, _ in retrieve():
        _left(until)
        code = status.get("Status")
        if code not in _PENDING:
            if code is None:
                msg = "no answer"
                raise _Late(msg)
            return bool(code == _SUCCESS)
    return False


def _on_store(event: Event, *, arrived: list[Arrived]) -> int:
    """Take a C-STORE sub-operation (PS3.4 C.5.3)."""
    try:
        command = cast("C_STORE", event.request)
        one = Arrived(
            sop_class_uid=str(command.AffectedSOPClassUID),
            sop_instance_uid=str(command.AffectedSOPInstanceUID),
            transfer_syntax_uid=str(event.context.transfer_syntax),
            data=event.encoded_dataset(include_meta=False),
        )
    except Exception:  # noqa: BLE001 - a damaged request is refused
        return _REFUSED
    if len(arrived) >= _MOST_REPORTS or not is_uid(one.sop_instance_uid):
        return _REFUSED
    arrived.append(one)
    return _SUCCESS
