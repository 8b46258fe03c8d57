"""Searches answered: pages of resources as Bundles, and single resources with their version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote, urlencode

from sqlalchemy.orm import Session

from hipscore.api.fhir import observations, resources
from hipscore.api.fhir.datatypes import Json
from hipscore.api.fhir.kinds import IMAGING, OBSERVATIONS
from hipscore.api.fhir.search import Search
from hipscore.store import clinical
from hipscore.store.clinical import Record


class Page(NamedTuple):
    """What is shown of a search, and where the next page goes on."""

    matches: list[Json]
    included: list[Json]
    cursor: str | None


def answer(search: Search, *, base: str, session: Session) -> Json:
    """The Bundle of one page. ``total`` is there only where it was asked for.

    Parameters
    ----------
    search
        What is searched for.
    base
        Absolute URL the application is mounted at, without a slash at its end.
    session
        A reading session.
    """
    root = f"{base}/fhir"
    if search.totals:
        total = clinical.count(search.wanted, session=session)
        return {**_bundle(search, root, None), "total": total}
    page = _page(search, base=base, session=session)
    entries = [
        *(_entry(each, root, "match") for each in page.matches),
        *(_entry(each, root, "include") for each in page.included),
    ]
    bundle = _bundle(search, root, page.cursor)
    return {**bundle, "entry": entries} if entries else bundle


def _bundle(search: Search, root: str, cursor: str | None) -> Json:
    links = [{"relation": "self", "url": _url(root, search, None)}]
    if cursor is not None:
        links.append({"relation": "next", "url": _url(root, search, cursor)})
    return {"resourceType": "Bundle", "type": "searchset", "link": links}


def _url(root: str, search: Search, cursor: str | None) -> str:
    place = [] if cursor is None else [("_cursor", cursor)]
    query = urlencode([*search.used, *place], quote_via=quote, safe="|,:/")
    return f"{root}/{search.kind.name}" + (f"?{query}" if query else "")


def _entry(resource: Json, root: str, mode: str) -> Json:
    return {
        "fullUrl": f"{root}/{resource['resourceType']}/{resource['id']}",
        "resource": resource,
        "search": {"mode": mode},
    }


def _page(search: Search, *, base: str, session: Session) -> Page:
    if search.kind is OBSERVATIONS:
        return _observations(search, session=session)
    found = clinical.records(
        search.wanted,
        order=search.order,
        start=search.start,
        limit=search.size + 1,
        session=session,
    )
    shown = found[: search.size]
    cursor = _cursor(search, found[search.size], 0) if len(found) > search.size else None
    if search.kind is IMAGING:
        studies = clinical.imaging(shown, session=session)
        return Page([resources.imaging_study(each) for each in studies], [], cursor)
    included = [
        observations.observation(record, about)
        for record in shown
        for about in observations.subjects(record)
        if search.results
    ]
    return Page([resources.report(each, base=base) for each in shown], included, cursor)


def _observations(search: Search, *, session: Session) -> Page:
    """A study has up to three, so a page may begin and end within one.

    Every study with a result has at least the one about the patient; so many studies as
    resources are wanted are enough.
    """
    found = clinical.records(
        search.wanted,
        order=search.order,
        start=search.start,
        limit=search.size + 1,
        session=session,
    )
    shown: list[Json] = []
    for record, position, about in _flat(search, found[: search.size]):
        if len(shown) == search.size:
            return Page(shown, [], _cursor(search, record, position))
        shown.append(observations.observation(record, about))
    more = len(found) > search.size
    return Page(shown, [], _cursor(search, found[-1], 0) if more else None)


def _flat(search: Search, found: Sequence[Record]) -> Iterator[tuple[Record, int, str]]:
    for record in found:
        begun = search.start is not None and record.place(search.order) == search.start
        for position, about in enumerate(observations.subjects(record)):
            if begun and position < search.position:
                continue
            key = "" if record.job is None else record.job.key
            if search.about is None or (key, about) in search.about:
                yield record, position, about


def _cursor(search: Search, record: Record, position: int) -> str:
    return search.cursor(record.place(search.order), position)
