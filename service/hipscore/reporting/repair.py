"""Elements as the standard wants them, made of elements as anybody may have written them.

Values are read from their bytes and judged here. Pydicom's own conversion is not asked
where a person may be described: it prints what it does not like.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType

from pydicom import charset
from pydicom.datadict import (
    dictionary_has_tag,
    dictionary_keyword,
    dictionary_VM,
    dictionary_VR,
    tag_for_keyword,
)
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import TEXT_VR_DELIMS, PersonName

from hipscore import attributes

UTF_8 = "ISO_IR 192"

_MAX_DEPTH = 4  # a sequence nested deeper is none that reports take over

#: longest value, in characters (PS3.5 table 6.2-1)
_LENGTH: Mapping[str, int] = MappingProxyType(
    {"LO": 64, "LT": 10240, "SH": 16, "ST": 1024, "UC": 2**31, "UT": 2**31}
)
#: form of a value (PS3.5 table 6.2-1). Components with a leading zero are no UID, but real
#: devices write them, and a report under another UID would be lost to its study.
_FORM: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "AS": re.compile(r"\d{3}[DWMY]"),
        "CS": re.compile(r"[A-Z0-9 _]{1,16}"),
        "DA": re.compile(r"\d{8}"),
        "DS": re.compile(r"(?=.{1,16}$)[+-]?(\d+\.?\d*|\.\d+)([Ee][+-]?\d+)?"),
        "IS": re.compile(r"(?=.{1,12}$)[+-]?\d+"),
        "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?"),
        "UI": re.compile(r"(?=.{1,64}$)[0-2](\.\d+)+"),
    }
)
#: separators that older systems wrote between the parts of a date or time
_SEPARATORS: Mapping[str, str] = MappingProxyType({"DA": ".-/", "TM": ":"})
_PARAGRAPHS = frozenset({"LT", "ST", "UT"})  # may have lines and hold a backslash
_BYTES_OF_TEXT = frozenset({*_LENGTH, *_FORM, "AE", "DT", "PN", "UN", "UR", None})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_LINE = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")

_YES_NO = frozenset({"YES", "NO"})
#: enumerated values
_ENUMERATED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "PatientSex": frozenset({"M", "F", "O"}),
        "PatientIdentityRemoved": _YES_NO,
        "QualityControlSubject": _YES_NO,
        "LongitudinalTemporalInformationModified": frozenset({"UNMODIFIED", "MODIFIED", "REMOVED"}),
        "LossyImageCompression": frozenset({"00", "01"}),
        "TypeOfPatientID": frozenset({"TEXT", "RFID", "BARCODE"}),
        "UniversalEntityIDType": frozenset(
            {"DNS", "EUI64", "ISO", "URI", "UUID", "X400", "X500"},
        ),
    }
)
_REFERENCE = ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")
#: what an item says nothing without; items of ``...CodeSequence`` need a whole code
_NEEDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "OtherPatientIDsSequence": ("PatientID", "TypeOfPatientID"),
        "ReferencedStudySequence": _REFERENCE,
        "ReferencedPatientSequence": _REFERENCE,
        "ReferencedPerformedProcedureStepSequence": _REFERENCE,
        "ReferringPhysicianIdentificationSequence": ("PersonIdentificationCodeSequence",),
    }
)
_CODE_VALUES = ("CodeValue", "LongCodeValue", "URNCodeValue")

_SPELLING = re.compile(r"ISO[ _-]*(2022)?[ _-]*IR[ _-]*(\d+)")


def elements(dataset: Dataset, keywords: Iterable[str]) -> Dataset:
    """Whichever of these elements ``dataset`` has and can be written as the standard asks.

    Control characters are taken out, dates lose their separators and names what is too
    much; what is still no valid value is left out. Items of sequences likewise. The
    result has the Specific Character Set (0008,0005) its texts can be written in: their
    own where possible.
    """
    terms = _character_set(dataset)
    result = Dataset()
    for keyword in keywords:
        element = _element(dataset, Tag(keyword), terms, _MAX_DEPTH)
        if element is not None:
            result.add(element)
    _settle(result, terms)
    return result


def settle(dataset: Dataset) -> None:
    """Give texts that were put together the Specific Character Set they can be written in."""
    terms = _character_set(dataset)
    dataset.pop("SpecificCharacterSet", None)
    _settle(dataset, terms)


def _settle(dataset: Dataset, terms: tuple[str, ...] | None) -> None:
    words = [text for text in _texts(dataset) if not text.isascii()]
    if words and not (terms and all(_encodable(text, terms) for text in words)):
        terms = (UTF_8,)
    if terms:
        dataset.SpecificCharacterSet = list(terms) if len(terms) > 1 else terms[0]


def uid(dataset: Dataset, keyword: str) -> str:
    """The UID an element holds; empty where it holds none, or several."""
    values = _values(dataset, Tag(keyword), "UI", ())
    return values[0] if values is not None and len(values) == 1 else ""


# --- character sets (PS3.3 C.12.1.1.2) ------------------------------------------------
def _character_set(dataset: Dataset) -> tuple[str, ...] | None:
    """Defined terms of Specific Character Set; none for the default, None if unknown."""
    stored = _stored(dataset, Tag("SpecificCharacterSet"), ())
    if stored is None:
        return None
    first, *others = (_spelled(term.strip()) for term in stored.split("\\"))
    terms = (first, *(term for term in others if term))
    if not any(terms):
        return ()
    if any(term not in charset.python_encoding for term in terms):
        return None
    if terms[0] in charset.STAND_ALONE_ENCODINGS:
        return terms[:1]
    return None if set(terms) & set(charset.STAND_ALONE_ENCODINGS) else terms


def _spelled(term: str) -> str:
    """A term as it is defined, whichever separators were written; empty for ISO-IR 6."""
    match = _SPELLING.fullmatch(term.upper())
    if match is None:
        return term
    extension, number = match.groups()
    if number == "6":
        return ""
    return f"ISO 2022 IR {number}" if extension else f"ISO_IR {number}"


def _encodings(terms: tuple[str, ...]) -> list[str]:
    return [charset.python_encoding[term] for term in terms]


def _decoded(value: bytes, terms: tuple[str, ...] | None, vr: str) -> str:
    """Text of bytes that say how they are encoded, or do not, or lie."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    if terms:
        delimiters = TEXT_VR_DELIMS | (set(b"^=") if vr == "PN" else set())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # said where bytes are replaced
                return charset.decode_bytes(value, _encodings(terms), delimiters)
        except (ValueError, LookupError, UserWarning):
            pass
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _encodable(text: str, terms: tuple[str, ...]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said where characters are replaced
            charset.encode_string(text, _encodings(terms))
    except (ValueError, LookupError, UserWarning):
        return False
    return True


def _texts(dataset: Dataset) -> Iterable[str]:
    """Every text of a data set and of its items."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _texts(item)
        elif element.VM > 1:
            yield from map(str, element.value)
        else:
            yield str(element.value)


# --- values (PS3.5 6.2) ---------------------------------------------------------------
def _element(
    dataset: Dataset, tag: BaseTag, terms: tuple[str, ...] | None, depth: int
) -> DataElement | None:
    """One element, repaired; None where it is absent or beyond repair."""
    vr = dictionary_VR(tag)
    if tag not in dataset:
        return None
    if vr == "SQ":
        items = _items(dataset, tag, terms, depth)
        return DataElement(tag, vr, items) if items else None
    values = _values(dataset, tag, vr, terms)
    if values is None or (len(values) > 1 and dictionary_VM(tag) == "1"):
        return None
    allowed = _ENUMERATED.get(dictionary_keyword(tag))
    if allowed is not None and not {*values, ""} <= allowed | {""}:
        return None
    return DataElement(tag, vr, values if len(values) > 1 else values[0])


def _items(
    dataset: Dataset, tag: BaseTag, terms: tuple[str, ...] | None, depth: int
) -> list[Dataset]:
    """Items of a sequence that still say something."""
    found = []
    keyword = dictionary_keyword(tag)
    for item in attributes.items(dataset, keyword) if depth else []:
        own = _character_set(item) if "SpecificCharacterSet" in item else terms
        repaired = Dataset()
        for inner in sorted(item.keys()):
            if _public_text(inner):
                element = _element(item, inner, own, depth - 1)
                if element is not None and not element.is_empty:
                    repaired.add(element)
        if _says_something(keyword, repaired):
            found.append(repaired)
    return found


def _public_text(tag: BaseTag) -> bool:
    """Whether items pass this element on: text or a sequence, of the standard."""
    if tag == tag_for_keyword("SpecificCharacterSet") or not dictionary_has_tag(tag):
        return False
    return dictionary_VR(tag) in {"SQ", "PN", *_LENGTH, *_FORM}


def _says_something(keyword: str, item: Dataset) -> bool:
    if keyword.endswith("CodeSequence"):
        needed: tuple[str, ...] = ("CodingSchemeDesignator", "CodeMeaning")
        if not any(item.get(name) for name in _CODE_VALUES):
            return False
    else:
        needed = _NEEDED.get(keyword, ())
    return len(item) > 0 and all(item.get(name) for name in needed)


def _values(
    dataset: Dataset, tag: BaseTag, vr: str, terms: tuple[str, ...] | None
) -> list[str] | None:
    """Values of an element, repaired; None where one of them cannot be."""
    stored = _stored(dataset, tag, terms, vr)
    if stored is None:
        return None
    values = [_fitted(vr, part) for part in ([stored] if vr in _PARAGRAPHS else stored.split("\\"))]
    found = [value for value in values if value is not None]
    return found if len(found) == len(values) else None


def _stored(
    dataset: Dataset, tag: BaseTag, terms: tuple[str, ...] | None, vr: str = "CS"
) -> str | None:
    """Text of an element, all values of it; empty where absent, None where it is no text."""
    if tag not in dataset:
        return ""
    try:
        element = dataset.get_item(tag)
        value = element.value
        if value is None:
            return ""
        if isinstance(value, bytes):
            return _decoded(value, terms, vr) if element.VR in _BYTES_OF_TEXT else None
        values = value if isinstance(value, MultiValue | list | tuple) else [value]
        if not all(isinstance(it, str | int | float | PersonName) for it in values):
            return None
        return "\\".join(_shown(it, terms) for it in values)
    except Exception:  # noqa: BLE001 - as in attributes: reading raises what the bytes provoke
        return None


def _shown(value: object, terms: tuple[str, ...] | None) -> str:
    """Text of a value that pydicom has converted; it decodes names only when asked."""
    if isinstance(value, PersonName) and isinstance(value.original_string, bytes):
        return _decoded(value.original_string, terms, "PN")
    return str(value)


def _fitted(vr: str, text: str) -> str | None:
    """One value in the form of its VR, or None; empty stays empty."""
    text = (_CONTROL_IN_LINE if vr in _PARAGRAPHS else _CONTROL).sub("", text).rstrip()
    if vr == "PN":
        return _name(text)
    if vr in _LENGTH:
        return text if len(text) <= _LENGTH[vr] else None
    if vr not in _FORM:
        return None
    text = text.strip()
    for separator in _SEPARATORS.get(vr, ""):
        text = text.replace(separator, "")
    if not text:
        return ""
    return text if _FORM[vr].fullmatch(text) and text.isascii() and _sensible(vr, text) else None


def _sensible(vr: str, text: str) -> bool:
    if vr == "DA":
        try:
            datetime.strptime(text, "%Y%m%d")  # noqa: DTZ007 - a date, no moment
        except ValueError:
            return False
    if vr == "DS":
        return math.isfinite(float(text))
    return vr != "IS" or abs(int(text)) < 2**31


def _name(text: str) -> str:
    """A person name: three groups of five components, 64 characters each (PS3.5 6.2.1)."""
    groups = ("^".join(group.split("^")[:5])[:64] for group in text.split("=")[:3])
    return "=".join(groups)
