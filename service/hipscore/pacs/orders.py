"""The order a study was made for: asked of the modality worklist, or of the PACS.

Names and numbers in the answers are decoded by their own Specific Character Set
(0008,0005); they belong into the database and into reports, and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from pydicom.dataset import Dataset
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ModalityWorklistInformationFind,
    StudyRootQueryRetrieveInformationModelFind,
)

from hipscore.addresses import Peer
from hipscore.attributes import first_item, text
from hipscore.domain import Outcome, StudyIdentity
from hipscore.identity import identity
from hipscore.pacs.association import DEFAULT_TIMEOUTS, Timeouts, associate, drop, leave
from hipscore.pacs.query import find

WORKLIST, PACS = "worklist", "pacs"

_WORKLIST = ModalityWorklistInformationFind
_STUDY_ROOT = StudyRootQueryRetrieveInformationModelFind
#: more procedure steps than this mean that the worklist does not match by what was asked
_MOST = 200
#: of whom and for whom (PS3.4 table K.6-1); the requested procedure is put where images have it
_RETURNED = (
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
)
_PROCEDURE = ("RequestedProcedureID", "RequestedProcedureDescription")
_WILD = frozenset("*?\\")  # PS3.4 C.2.2.2.4; the backslash separates values

log = logging.getLogger(__name__)


def order_from_worklist(
    peer: Peer,
    study_uid: str,
    whose: StudyIdentity,
    *,
    calling_aet: str,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> StudyIdentity | Outcome | None:
    """Ask a modality worklist (PS3.4 annex K) for the order of a study.

    By Study Instance UID, which the modality took over from the worklist. Where it has none
    of that: by patient and day of the study, if exactly one MR procedure was planned then
    that is not for another study or accession number.

    Returns
    -------
    StudyIdentity, Outcome or None
        The order; None where the worklist has none for the study, or several that it may be;
        the outcome where the peer did not answer.
    """

    def ask(association: Association) -> StudyIdentity | None:
        steps = _steps(association, _planned(study_uid=study_uid, whose=whose), timeouts)
        of_study = [each for each in steps if text(each, "StudyInstanceUID") == study_uid]
        of_patient = [each for each in of_study if _may_be_of(each, whose)]
        if of_study:
            return _the_only_one(of_patient)
        if whose.patient_key is None or not whose.study_date or _WILD & set(whose.patient_id):
            return None
        steps = _steps(association, _planned(whose=whose), timeouts)
        return _the_only_one([each for each in steps if _is_of_the_day(each, study_uid, whose)])

    return _asked(peer, _WORKLIST, ask, calling_aet, timeouts)


def order_from_pacs(
    peer: Peer,
    study_uid: str,
    whose: StudyIdentity,
    *,
    calling_aet: str,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> StudyIdentity | Outcome | None:
    """Ask a PACS what it knows of a study (C-FIND, study root, study level); as above."""

    def ask(association: Association) -> StudyIdentity | None:
        query = Dataset()
        query.QueryRetrieveLevel = "STUDY"
        for keyword in (*_RETURNED, *_PROCEDURE, "StudyID", "StudyDate", "StudyTime"):
            setattr(query, keyword, "")
        query.StudyInstanceUID = study_uid
        found = find(association, query, seconds=timeouts.dimse, most=_MOST)
        studies = [
            each
            for each in found
            if text(each, "StudyInstanceUID") == study_uid and _may_be_of(each, whose)
        ]
        known = _read(studies[0], PACS) if len(studies) == 1 else None
        says = known is not None and (
            known.accession_number or known.referring_physician or known.requested_procedure_id
        )
        return known if says else None

    return _asked(peer, _STUDY_ROOT, ask, calling_aet, timeouts)


def _asked(
    peer: Peer,
    model: str,
    ask: Callable[[Association], StudyIdentity | None],
    calling_aet: str,
    timeouts: Timeouts,
) -> StudyIdentity | Outcome | None:
    association = associate(peer, [build_context(model)], calling_aet, timeouts)
    if isinstance(association, Outcome):
        return association
    try:
        found = ask(association)
    except Exception as error:  # noqa: BLE001 - whatever a damaged answer makes the parser raise
        log.warning("%s cannot be asked for an order: %s", peer, type(error).__name__)
        drop(association)  # it may still be sending matches
        text_ = f"{peer} did not answer a query to its end"
        return Outcome(delivered=False, retry=True, status=None, text=text_)
    leave(association)
    return found


def _planned(*, whose: StudyIdentity, study_uid: str = "") -> Dataset:
    """The identifier of a worklist query (PS3.4 K.4.1.1.3)."""
    step = Dataset()
    step.Modality = ""
    step.ScheduledStationAETitle = ""
    step.ScheduledProcedureStepStartDate = ""
    step.ScheduledProcedureStepStartTime = ""
    query = Dataset()
    for keyword in (*_RETURNED, *_PROCEDURE):
        setattr(query, keyword, "")
    if study_uid:
        query.StudyInstanceUID = study_uid
    else:
        step.Modality = "MR"
        step.ScheduledProcedureStepStartDate = whose.study_date
    if not _WILD & set(whose.patient_id):
        # also beside a Study Instance UID: matching by that is optional (PS3.4 table K.6-1)
        query.PatientID = whose.patient_id
    query.ScheduledProcedureStepSequence = [step]
    if not whose.patient_id.isascii():
        query.SpecificCharacterSet = "ISO_IR 192"
    return query


def _steps(association: Association, query: Dataset, timeouts: Timeouts) -> list[Dataset]:
    return find(association, query, model=_WORKLIST, seconds=timeouts.dimse, most=_MOST)


def _the_only_one(steps: Sequence[Dataset]) -> StudyIdentity | None:
    """The order of these steps, unless they belong to several: one may have several steps."""
    orders = {_read(each, WORKLIST): None for each in steps}
    return next(iter(orders)) if len(orders) == 1 else None


def _may_be_of(answer: Dataset, whose: StudyIdentity) -> bool:
    """Whether nothing says that this is another patient."""
    pairs = (
        (text(answer, "PatientID"), whose.patient_id),
        (text(answer, "IssuerOfPatientID"), whose.issuer_of_patient_id),
    )
    return all(theirs == ours or not (theirs and ours) for theirs, ours in pairs)


def _is_of_the_day(answer: Dataset, study_uid: str, whose: StudyIdentity) -> bool:
    """Whether this is what was asked for: a peer may ignore a key that it does not match by.

    What names the Study Instance UID or accession number of another study is that one's
    order: a knee of the same patient may have been planned for the same day.
    """
    step = first_item(answer, "ScheduledProcedureStepSequence")
    accession = text(answer, "AccessionNumber")
    return (
        text(answer, "StudyInstanceUID") in {"", study_uid}
        and (not accession or whose.accession_number in {"", accession})
        and text(answer, "PatientID") == whose.patient_id
        and _may_be_of(answer, whose)
        and text(step, "Modality") == "MR"
        and text(step, "ScheduledProcedureStepStartDate") == whose.study_date
    )


def _read(answer: Dataset, where: str) -> StudyIdentity:
    """What an answer says, in the words of an image of the study."""
    image, request = Dataset(), Dataset()
    for keyword in (*_RETURNED, "StudyID", "StudyDate", "StudyTime"):
        value = text(answer, keyword)
        # a peer that cannot encode a name in its own character set leaves the delimiters
        setattr(image, keyword, value if value.strip("^= ") else "")
    for keyword in _PROCEDURE:
        setattr(request, keyword, text(answer, keyword))
    image.RequestAttributesSequence = [request]
    return replace(identity(image), order_source=where)
