"""Counting: how many images of a series a peer has, by C-FIND (PS3.4 annex C)."""

from __future__ import annotations

import logging
import time

from pydicom.dataset import Dataset
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
)

from hipscore.addresses import Peer
from hipscore.domain import Outcome
from hipscore.pacs.association import DEFAULT_TIMEOUTS, Timeouts, associate, drop, leave

_MODEL = StudyRootQueryRetrieveInformationModelFind
#: statuses of a match that is followed by others, PS3.4 table C.4-1
_PENDING = frozenset({0xFF00, 0xFF01})
#: a series of more images than this is nobody's hip MRI, and no reason to count on
_LARGEST = 10_000

log = logging.getLogger(__name__)


class QueryFailed(Exception):
    """The peer did not answer the query to its end."""


def count_images(
    peer: Peer,
    study_uid: str,
    series_uid: str,
    *,
    calling_aet: str,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> int | None:
    """How many images of the series the peer has; None when it does not say.

    Number of Series Related Instances (0020,1209), which a peer may return at the series
    level (PS3.4 table C.6-3); from one that does not, its images are counted.
    """
    association = associate(peer, [build_context(_MODEL)], calling_aet, timeouts)
    if isinstance(association, Outcome):
        return None
    try:
        number = _related(association, study_uid, series_uid, timeouts)
        if number is None:
            number = _counted(association, study_uid, series_uid, timeouts)
    except Exception as error:  # noqa: BLE001 - whatever a damaged answer makes the parser raise
        log.warning("%s cannot count a series: %s", peer, type(error).__name__)
        number = None
    if number is None:
        drop(association)  # it may still be sending matches
    else:
        leave(association)
    return number


def _related(
    association: Association, study_uid: str, series_uid: str, timeouts: Timeouts
) -> int | None:
    query = _query("SERIES", study_uid, series_uid)
    query.NumberOfSeriesRelatedInstances = None
    matches = _matches(association, query, timeouts)
    if len(matches) != 1:
        return None
    number = matches[0].get("NumberOfSeriesRelatedInstances")
    return int(number) if isinstance(number, int) and number > 0 else None


def _counted(
    association: Association, study_uid: str, series_uid: str, timeouts: Timeouts
) -> int | None:
    query = _query("IMAGE", study_uid, series_uid)
    query.SOPInstanceUID = ""
    uids = {str(match.get("SOPInstanceUID")) for match in _matches(association, query, timeouts)}
    return len(uids)


def _query(level: str, study_uid: str, series_uid: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    query.StudyInstanceUID = study_uid
    query.SeriesInstanceUID = series_uid
    return query


def find(
    association: Association,
    query: Dataset,
    *,
    model: str = _MODEL,
    seconds: float,
    most: int = _LARGEST,
) -> list[Dataset]:
    """Every match of a C-FIND (PS3.4 C.4.1), as the peer wrote it.

    Raises
    ------
    QueryFailed
        If the peer fails, has more matches than ``most``, or does not come to an end in time.
    """
    until = time.monotonic() + seconds
    matches: list[Dataset] = []
    for status, match in association.send_c_find(query, model):
        code = status.get("Status")
        if code == 0x0000:
            break
        if code not in _PENDING or match is None or time.monotonic() > until:
            msg = f"C-FIND ended with {code}"
            raise QueryFailed(msg)
        matches.append(match)
        if len(matches) > most:
            msg = f"more than {most} matches"
            raise QueryFailed(msg)
    return matches


def _matches(association: Association, query: Dataset, timeouts: Timeouts) -> list[Dataset]:
    """Every match of the series."""
    uid = query.SeriesInstanceUID
    found = find(association, query, seconds=timeouts.dimse)
    return [match for match in found if match.get("SeriesInstanceUID", uid) == uid]
