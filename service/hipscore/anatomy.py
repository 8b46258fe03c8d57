"""Which part of the body a series says it shows, in the languages of the people who name it.

Nobody fills these attributes in by the same rule. What is said of the series goes before
what is said of the study; a hip or a pelvis goes before anything else that is named beside
it; and silence excludes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from pydicom.dataset import Dataset

from hipscore.attributes import first_item, group, items, text, texts


class Region(Enum):
    """What the words are about."""

    HIP = "hip or pelvis"
    OTHER = "another part of the body"
    UNKNOWN = "no part of the body"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a series says it shows, and the word that says so (``""`` if none does)."""

    region: Region
    word: str = ""


#: of the series itself, then of its study and its order
_OF_SERIES = ("BodyPartExamined", "SeriesDescription", "ProtocolName", "PerformedProtocolType")
_OF_STUDY = (
    "StudyDescription",
    "RequestedProcedureDescription",
    "PerformedProcedureStepDescription",
)
_REGIONS = ("AnatomicRegionSequence", "PrimaryAnatomicStructureSequence")

#: beginnings of words, without accents: no letter stands before them, any may follow
_HIP_BEGINS = (
    "pelv", "becken", "huft", "hueft", "hanche", "bassin", "cadera", "bacino", "heup", "bekken",
    "backen", "baekken", "hoft", "hofte", "cox", "quadril", "bacia", "biodr", "miednic", "lonkka",
    "lantio", "kalca", "kycel", "panev", "csipo", "medence", "bedr", "таз",
    "femurkopf", "schenkelhals", "abdomenpelv", "abdominopelv",
    # the sacroiliac joints lie in the pelvis, and their images show the hips
    "sacroil", "sacro-il", "sakroil", "iliosa", "ileosa",
)  # fmt: skip
#: whole words
_HIP_WORDS = (
    "hips?", "anca", "anche", "isg", "sij", "is[ -]?gelenke?", "si[ -]?(?:gelenke?|joints?)",
    "femoral (?:head|neck)s?",
    "(?:tete|col) femorale?", "(?:head|neck)s? of (?:the )?femur", "cabeza femoral",
    "testa (?:del femore|femorale)", "avn",
)  # fmt: skip
_HIP_SIGNS = ("股関節", "骨盤", "髋", "骨盆", "엉덩", "골반")

_OTHER_BEGINS = (
    "knee", "knie", "genou", "rodilla", "ginocch", "kolano", "polvi",
    "shoulder", "schulter", "epaule", "hombro", "spalla", "schouder", "axel", "skulder",
    "brain", "schadel", "schaedel", "skull", "cerebr", "encefal", "encephal", "cervell", "crane",
    "craneo", "cranio", "hersen", "hjarn", "neuro", "hypophys", "pituit", "orbit",
    "(?:[tlc]|ls|tl)?spin[ae]", "wirbel", "lumb", "thora", "cervic", "rachis", "column",
    "colonna", "wervel", "rygg", "halswirbel", "brustwirbel", "lendenwirbel",
    "ankle", "sprunggelenk", "cheville", "tobillo", "caviglia", "enkel", "fotled",
    "foot", "fuss", "vorfuss", "pied", "piede", "voet",
    "wrist", "handgelenk", "poignet", "muneca", "polso", "finger",
    "elbow", "ellbogen", "ellenbogen", "coude", "codo", "gomito", "elleboog", "armbag",
    "breast", "mamm", "seno", "borst", "brost",
    "heart", "herz", "coeur", "card", "corazon", "cuore",
    "liver", "leber", "foie", "higado", "fegat", "kidney", "niere", "pancrea", "mrcp",
    "abdom", "oberbauch",
)  # fmt: skip
_OTHER_WORDS = (
    "head", "kopf", "neck", "hals", "tete", "testa", "cabeza", "cou", "hws", "bws", "lws", "osg",
    "usg", "hand", "hande", "mano", "pie", "chest", "bauch", "ventre", "jaw", "tmj", "kiefer",
)  # fmt: skip


def _pattern(
    begins: Iterable[str], words: Iterable[str], signs: Iterable[str] = ()
) -> re.Pattern[str]:
    alone = "|".join((*(f"(?:{each})[^\\W\\d_]*" for each in begins), *words))
    named = rf"(?<![^\W\d_])(?:{alone})(?![^\W\d_])"
    return re.compile("|".join((named, *signs)))


_HIP = _pattern(_HIP_BEGINS, _HIP_WORDS, _HIP_SIGNS)
_OTHER = _pattern(_OTHER_BEGINS, _OTHER_WORDS)
#: the kidney has a pelvis too
_NO_HIP = re.compile(r"renal pelvi\w*|pelvi\w* renal\w*|nierenbecken\w*")


def shown(image: Dataset) -> Shown:
    """Read what part of the body an image says it shows; never an error.

    Evidence, of the series: Body Part Examined (0018,0015), Anatomic Region (0008,2218;
    in Enhanced MR the Frame Anatomy macro, PS3.3 C.7.6.16.2.8), series description and
    protocol name; then of the study: its description and those of the procedure that was
    requested or performed.
    """
    for words in (_series_words(image), _study_words(image)):
        found = judge(words)
        if found.region is not Region.UNKNOWN:
            return found
    return Shown(region=Region.UNKNOWN)


def judge(descriptions: Iterable[str]) -> Shown:
    """What some descriptions are about: a hip or pelvis if any names one."""
    plain = [_NO_HIP.sub(" kidney ", _plain(each)) for each in descriptions]
    for region, pattern in ((Region.HIP, _HIP), (Region.OTHER, _OTHER)):
        for each in plain:
            if found := pattern.search(each):
                return Shown(region=region, word=found.group())
    return Shown(region=Region.UNKNOWN)


def _series_words(image: Dataset) -> Iterator[str]:
    for keyword in _OF_SERIES:
        yield from texts(image, keyword)
    shared = first_item(image, "SharedFunctionalGroupsSequence")
    own = first_item(image, "PerFrameFunctionalGroupsSequence")
    for holder in (image, group(shared, own, "FrameAnatomySequence")):
        for keyword in _REGIONS:
            yield from (text(code, "CodeMeaning") for code in items(holder, keyword))


def _study_words(image: Dataset) -> Iterator[str]:
    for keyword in _OF_STUDY:
        yield from texts(image, keyword)
    for keyword in ("RequestAttributesSequence", "ProcedureCodeSequence"):
        for item in items(image, keyword):
            yield from texts(item, "RequestedProcedureDescription")
            yield from texts(item, "ScheduledProcedureStepDescription")
            yield from texts(item, "CodeMeaning")


def _plain(description: str) -> str:
    """Small letters without accents; underscores part words."""
    folded = description.casefold().replace("æ", "ae").replace("ø", "o").replace("_", " ")
    return "".join(
        each for each in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(each)
    )
