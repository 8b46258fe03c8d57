"""From the parameters of a FHIR search to what the store is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from sqlalchemy.orm import Session

from hipscore.api.fhir import observations
from hipscore.api.fhir.datatypes import DICOM_UID, PATIENT_KEY, issuer_of
from hipscore.api.fhir.dates import days, instants
from hipscore.api.fhir.kinds import (
    IMAGING,
    LARGEST_IMAGING_PAGE,
    LARGEST_PAGE,
    OBSERVATIONS,
    PAGE,
    Kind,
)
from hipscore.api.fhir.outcome import SearchError
from hipscore.header import is_uid
from hipscore.store import clinical
from hipscore.store.clinical import Order, Place, Wanted

Pairs: TypeAlias = Sequence[tuple[str, str]]

_VALUES = 100  # most alternatives of one parameter
_LONGEST = 8192
_KEY = re.compile(r"[0-9a-f]{40}")
_CURSOR = re.compile(r"([0-9]{8})?\.([1-9][0-9]{0,18})\.([0-3])")
_LARGEST_ROW = 2**63 - 1
_NOBODY = "unknown"  # no key of a patient looks like this
#: parameters that name a patient: not in a URL, which proxies write down
_NAMING = ("patient.identifier", "subject.identifier", "patient:identifier", "subject:identifier")
_POLITE = {"_format", "_pretty"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One search. ``used`` are the parameters that were understood, fit for a URL.

    ``about``: which Observations of the jobs in ``wanted`` are meant; None: all.
    ``position`` counts the Observations of the study at ``start`` that were shown before.
    """

    kind: Kind
    wanted: Wanted
    order: Order
    start: Place | None
    position: int
    size: int
    totals: bool
    results: bool
    about: frozenset[tuple[str, str]] | None
    used: tuple[tuple[str, str], ...]

    def cursor(self, place: Place, position: int) -> str:
        """Where the next page goes on: at the study of ``place`` after ``position``."""
        return f"{place.day}.{place.row}.{position}"


@dataclass(slots=True)
class _Draft:
    """A search that is being read."""

    kind: Kind
    wanted: Wanted
    strict: bool
    session: Session
    order: Order = Order.ARRIVED
    start: Place | None = None
    position: int = 0
    size: int = PAGE
    totals: bool = False
    results: bool = False
    about: frozenset[tuple[str, str]] | None = None
    used: list[tuple[str, str]] = field(default_factory=list)

    def narrow(self, name: str, values: Iterable[str]) -> None:
        """Both what was wanted before and one of these."""
        before: frozenset[str] | None = getattr(self.wanted, name)
        both: Any = frozenset(values) if before is None else before & frozenset(values)
        self.wanted = replace(self.wanted, **{name: both})


def parse(kind: Kind, query: Pairs, form: Pairs, *, strict: bool, session: Session) -> Search:
    """Understand the parameters of a search.

    Parameters
    ----------
    kind
        What is searched for.
    query, form
        Names and values from the URL, where no patient may be named, and from the body.
    strict
        Refuse what is unknown (``Prefer: handling=strict``) instead of ignoring it.
    session
        A reading session, to find the keys of patients.

    Raises
    ------
    SearchError
        If a value is wrong, or something cannot be answered as it was meant.
    """
    stages = None if kind.stages is None else frozenset(kind.stages)
    draft = _Draft(kind=kind, wanted=Wanted(stages=stages), strict=strict, session=session)
    for name, value in query:
        if name in _NAMING:
            msg = (
                f"{name}: a patient must not be named in a URL; "
                f"send it by POST to {kind.name}/_search"
            )
            raise SearchError(msg, code="security")
        _take(draft, name, value)
    for name, value in form:
        _take(draft, name, value)
    if draft.kind is IMAGING:
        draft.size = min(draft.size, LARGEST_IMAGING_PAGE)
    return Search(
        kind=kind,
        wanted=draft.wanted,
        order=draft.order,
        start=draft.start,
        position=draft.position,
        size=draft.size,
        totals=draft.totals,
        results=draft.results,
        about=draft.about,
        used=tuple(draft.used),
    )


def _take(draft: _Draft, name: str, value: str) -> None:
    if name in _NAMING:
        _naming(draft, name, value)
        return
    plain, _, modifier = name.partition(":")
    plain = plain.split(".")[0] if "." in plain else plain
    known = plain in draft.kind.parameters or plain in {"_summary", *_POLITE}
    if not known:
        if draft.strict:
            names = ", ".join(sorted(draft.kind.parameters))
            msg = f"{name[:64]!r} is no search parameter of {draft.kind.name}; there are: {names}"
            raise SearchError(msg, code="not-supported")
        return
    typed = plain in {"patient", "subject"} and modifier == "Patient"
    if "." in name or (modifier and not typed):
        msg = f"{name[:64]!r}: chains and modifiers are not supported"
        raise SearchError(msg, code="not-supported")
    if plain in _POLITE:
        return
    if not value:
        return  # FHIR: a parameter without value is as if it were not there
    _check(plain, value)
    reader = _date if plain == draft.kind.date else _READERS[plain]
    reader(draft, plain, value)
    if plain in {"patient", "subject"}:
        value = ",".join(sorted(filter(_KEY.fullmatch, map(_key, _alternatives(value)))))
        value = value or _NOBODY  # whatever else it was, it may name a patient
    if plain != "_cursor":
        draft.used.append((plain, value))


def _check(name: str, value: str) -> None:
    if len(value) > _LONGEST or value.count(",") >= _VALUES:
        msg = f"{name}: too long; give at most {_VALUES} values"
        raise SearchError(msg, code="too-costly")
    if "\0" in value:
        msg = f"{name}: there is a NUL character in it"
        raise SearchError(msg)


def _alternatives(value: str) -> list[str]:
    """Values between commas; a backslash keeps the character behind it (FHIR 3.1.1.4.0.2)."""
    return [_unescape(part) for part in re.split(r"(?<!\\),", value)]


def _unescape(text: str) -> str:
    return re.sub(r"\\([,$|\\])", r"\1", text)


def _token(text: str) -> tuple[str | None, str]:
    """System (None: any; empty: none) and code."""
    system, bar, code = text.rpartition("|")
    return (system if bar else None), code


def _ids(draft: _Draft, name: str, value: str) -> None:
    del name
    ids = _alternatives(value)
    if draft.kind is not OBSERVATIONS:
        draft.narrow("studies", (each for each in ids if is_uid(each)))
        return
    found = frozenset(each for each in map(observations.parse_id, ids) if each is not None)
    draft.about = found if draft.about is None else draft.about & found
    draft.narrow("job_keys", (key for key, _ in found))


def _patient(draft: _Draft, name: str, value: str) -> None:
    del name
    draft.narrow("patients", (_key(each) for each in _alternatives(value)))


def _key(reference: str) -> str:
    return reference.removeprefix("Patient/").removeprefix(f"{PATIENT_KEY}|")


def _naming(draft: _Draft, name: str, value: str) -> None:
    """A search by the patient's own identifier goes on under the opaque key."""
    _check(name, value)
    keys: set[str] = set()
    for each in _alternatives(value):
        system, number = _token(each)
        if not number:
            msg = f"{name}: write system|value, |value or value"
            raise SearchError(msg)
        issuer = None if system is None else issuer_of(system)
        if system == PATIENT_KEY:
            keys |= {number} if _KEY.fullmatch(number) else set()
        elif system is None or issuer is not None:
            keys |= clinical.patient_keys(number, issuer, session=draft.session)
    draft.narrow("patients", keys)
    draft.used.append(("patient", ",".join(sorted(keys)) or _NOBODY))


def _identifier(draft: _Draft, name: str, value: str) -> None:
    del name
    studies, numbers = set(), set()
    for each in _alternatives(value):
        system, text = _token(each)
        uid = text.removeprefix("urn:oid:")
        if system in {None, DICOM_UID} and is_uid(uid):
            studies.add(uid)
        if system in {None, ""} and text:
            numbers.add(text)
    pair = (frozenset(studies), frozenset(numbers))
    if draft.wanted.named is not None:
        msg = "identifier: give it once; alternatives go between commas"
        raise SearchError(msg, code="not-supported")
    draft.wanted = replace(draft.wanted, named=pair)


def _derived_from(draft: _Draft, name: str, value: str) -> None:
    del name
    uids = (each.removeprefix("ImagingStudy/") for each in _alternatives(value))
    draft.narrow("studies", filter(is_uid, uids))


def _date(draft: _Draft, name: str, value: str) -> None:
    group = tuple(days(each, name) for each in _alternatives(value))
    draft.wanted = replace(draft.wanted, days=(*draft.wanted.days, group))


def _last_updated(draft: _Draft, name: str, value: str) -> None:
    group = tuple(instants(each, name) for each in _alternatives(value))
    draft.wanted = replace(draft.wanted, changed=(*draft.wanted.changed, group))


def _status(draft: _Draft, name: str, value: str) -> None:
    del name
    wanted = {_token(each)[1] for each in _alternatives(value)}
    if draft.kind.stages is None:
        if "available" not in wanted:
            draft.narrow("studies", ())
        return
    draft.narrow("stages", (stage for stage, said in draft.kind.stages.items() if said in wanted))


def _code(draft: _Draft, name: str, value: str) -> None:
    """Every resource of a type has the same codes: either all are meant, or none."""
    offered = draft.kind.codes[name]
    for each in _alternatives(value):
        system, code = _token(each)
        if any(system in {None, its} and code in {"", own} for its, own in offered):
            return
    draft.narrow("studies", ())


def _include(draft: _Draft, name: str, value: str) -> None:
    if value in {"DiagnosticReport:result", "DiagnosticReport:*", "*"}:
        draft.results = True
    elif draft.strict:
        msg = f"{name}: only DiagnosticReport:result can be included"
        raise SearchError(msg, code="not-supported")


def _count(draft: _Draft, name: str, value: str) -> None:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        msg = f"{name}: write a number from 0 to {LARGEST_PAGE}"
        raise SearchError(msg)
    if int(value) == 0:
        _totals(draft, name)
    draft.size = min(int(value), LARGEST_PAGE)


def _summary(draft: _Draft, name: str, value: str) -> None:
    if value == "count":
        _totals(draft, name)
    elif value != "false" and draft.strict:
        msg = f"{name}: only count and false are supported"
        raise SearchError(msg, code="not-supported")


def _totals(draft: _Draft, name: str) -> None:
    if draft.kind is OBSERVATIONS:
        msg = f"{name}: Observations are not counted; count the DiagnosticReports"
        raise SearchError(msg, code="not-supported")
    draft.totals = True


def _sort(draft: _Draft, name: str, value: str) -> None:
    orders = {draft.kind.date: Order.OLDEST, f"-{draft.kind.date}": Order.NEWEST}
    if value in orders:
        draft.order = orders[value]
        return
    msg = f"{name}: {' and '.join(orders)} can be sorted by"
    raise SearchError(msg, code="not-supported")


def _cursor(draft: _Draft, name: str, value: str) -> None:
    found = _CURSOR.fullmatch(value)
    if found is None or int(found[2]) > _LARGEST_ROW:
        msg = f"{name}: take it from the next link of the previous page, as it stands there"
        raise SearchError(msg)
    draft.start = Place(found[1] or "", int(found[2]))
    draft.position = int(found[3])


_READERS: dict[str, Callable[[_Draft, str, str], None]] = {
    "_id": _ids,
    "patient": _patient,
    "subject": _patient,
    "identifier": _identifier,
    "derived-from": _derived_from,
    "_lastUpdated": _last_updated,
    "status": _status,
    "code": _code,
    "category": _code,
    "_include": _include,
    "_count": _count,
    "_summary": _summary,
    "_sort": _sort,
    "_cursor": _cursor,
}
