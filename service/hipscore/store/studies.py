"""Whose study it is: the identity that its images or its order give."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import asdict, dataclass, fields
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hipscore.domain import StudyIdentity
from hipscore.store.moves import load
from hipscore.store.tables import Series, Study

_FIELDS = [field.name for field in fields(StudyIdentity)]
#: letters of a part of a family name that two names may have in common by chance
_PARTICLE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What tells people of equal key apart; empty where it is not known.

    ``names``: digests of the family name and of its parts, letters only.
    """

    patient_id: str = ""
    issuer: str = ""
    birth_date: str = ""
    sex: str = ""
    names: frozenset[str] = frozenset()

    @classmethod
    def of(cls, identity: StudyIdentity) -> Traits:
        """What an identity says of the patient."""
        return cls(
            patient_id=identity.patient_id,
            issuer=identity.issuer_of_patient_id,
            birth_date=identity.birth_date,
            sex=identity.sex,
            names=_digests(identity.patient_name),
        )

    def contradict(self, other: Traits) -> bool:
        """Whether something known on both sides says that these are two people.

        A family name without any part in common does, even beside the same birth date: it
        is safer to miss an earlier result after a marriage than to show somebody else's.
        """
        return (
            _differ(self.patient_id, other.patient_id)
            or _differ(self.issuer, other.issuer)
            or _differ(self.birth_date, other.birth_date)
            or _differ(self.sex, other.sex)
            or self.strangers(other)
        )

    def strangers(self, other: Traits) -> bool:
        """Whether both family names are known and have nothing in common."""
        return bool(self.names and other.names and not self.names & other.names)


def conflict(known: StudyIdentity, other: StudyIdentity) -> bool:
    """Whether two identities inside one study cannot be the same patient's.

    Names may differ where the Patient ID is the same.
    """
    if (
        _differ(known.patient_id, other.patient_id)
        or _differ(known.issuer_of_patient_id, other.issuer_of_patient_id)
        or _differ(known.birth_date, other.birth_date)
    ):
        return True
    same_id = known.patient_key is not None and known.patient_id == other.patient_id
    return not same_id and Traits.of(known).strangers(Traits.of(other))


def identify(series_id: int, identity: StudyIdentity, *, now: datetime, session: Session) -> None:
    """Remember whose the study of this series is, where that was not known before.

    The first series that says it decides; a later one only fills what is empty.
    """
    uid = load(Series, series_id, session=session).study_instance_uid
    complete(uid, identity, now=now, session=session)


def complete(
    study_instance_uid: str, identity: StudyIdentity, *, now: datetime, session: Session
) -> bool:
    """Fill what is still empty of the study's identity. An unknown study is left alone.

    Returns
    -------
    bool
        False where the identity is another patient's (:func:`conflict`): nothing is taken.
    """
    row = by_uid(study_instance_uid, session=session)
    if row is None:
        return True
    if conflict(of(row), identity):
        return False
    known = asdict(of(row))
    missing = {name: value for name, value in asdict(identity).items() if value and not known[name]}
    if not missing:
        return True
    merged = StudyIdentity(**{**known, **missing})
    session.execute(
        update(Study)
        .where(Study.id == row.id)
        .values(**missing, patient_key=merged.patient_key, updated_at=now),
        execution_options={"synchronize_session": False},
    )
    session.expire(row)
    return True


def by_uid(study_instance_uid: str, *, session: Session) -> Study | None:
    """The line of the study, or None if it is unknown."""
    query = select(Study).where(Study.study_instance_uid == study_instance_uid)
    return session.scalars(query).one_or_none()


def of(row: Study) -> StudyIdentity:
    """The identity part of a line."""
    return StudyIdentity(**{name: getattr(row, name) for name in _FIELDS})


def _differ(one: str, other: str) -> bool:
    return bool(one and other and one != other)


def _digests(patient_name: str) -> frozenset[str]:
    """Digests of the family name (PS3.5 6.2.1, first component group) and of its parts."""
    family = patient_name.partition("=")[0].partition("^")[0]
    parts = {_letters(part) for part in family.replace("-", " ").split()}
    words = {_letters(family), *(part for part in parts if len(part) > _PARTICLE)} - {""}
    return frozenset(hashlib.sha256(word.encode()).hexdigest()[:16] for word in words)


def _letters(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.casefold())  # an accent becomes a mark
    return "".join(each for each in plain if each.isalpha())
