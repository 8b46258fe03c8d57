"""What a rule may ask of a series: how it came, and what the header of its first image says.

A condition says in words what it asks, without any value of the images: that goes into the
ledger. What it found stands apart and is shown only to who holds the images.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from pydicom.dataset import Dataset

from hipscore.anatomy import Region, shown
from hipscore.attributes import first_item, group, numbers
from hipscore.domain import ReceivedInstance
from hipscore.elements import identifies, values
from hipscore.protocol import fat_suppressed
from hipscore.series import MAX_TILT_DEG

Plane: TypeAlias = Literal["coronal", "axial", "sagittal"]
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

#: a pattern is matched against so many characters of a value: its time stays bounded
LONGEST_VALUE = 128
#: and an attribute has so many values that count
MOST_VALUES = 64

#: axis of LPS that the slices of a plane are perpendicular to
_NORMAL: dict[str, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
#: values of Image Type (0008,0008) for images computed from others: reformats, projections,
#: subtractions, maps (PS3.3 C.8.3.1.1.1, C.8.16.1.3, C.8.16.1.4, and what vendors write)
_COMPUTED = frozenset(
    {
        "MPR", "CSA MPR", "CSAPARALLEL", "REFORMATTED", "RESAMPLED", "CURVED",
        "MIP", "CSA MIP", "MINIP", "MNIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE", "MAXIMUM",
        "MINIMUM", "VOLUME_RENDER", "SUBTRACTION", "SUBTRACT", "SUB", "DIFFERENCE",
        "ADC", "T1 MAP", "T2 MAP", "T1_MAP", "T2_MAP", "SCREENSAVE", "SCREEN SAVE",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """How a series came: AE titles of its first association, and address of the sender."""

    calling_aet: str
    called_aet: str
    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A series that asks for a decision."""

    header: Dataset
    instances: tuple[ReceivedInstance, ...]
    came: Came


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One condition, tried: ``text`` is what was asked, ``found`` what is there.

    ``found`` may be anything that stands in an image: never store or log it.
    """

    text: str
    holds: bool
    found: str


class Condition(Protocol):
    """Something that holds of a series, or does not; ``text`` is what it asks."""

    @property
    def text(self) -> str: ...

    def check(self, series: Offered) -> Check: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class From:
    """It came from, or was sent to, one of these. Empty asks nothing."""

    calling: tuple[str, ...] = ()
    called: tuple[str, ...] = ()
    peer: tuple[Network, ...] = ()

    def admits(self, came: Came) -> bool:
        """Whether what came this way is meant."""
        return (
            (not self.calling or came.calling_aet in self.calling)
            and (not self.called or came.called_aet in self.called)
            and (not self.peer or any(_within(came.peer, network) for network in self.peer))
        )

    @property
    def text(self) -> str:
        asked = (
            ("calling AE title", self.calling),
            ("called AE title", self.called),
            ("peer", self.peer),
        )
        return " and ".join(f"{name} {_listed(one_of)}" for name, one_of in asked if one_of)

    def check(self, series: Offered) -> Check:
        came = series.came
        asked = (
            (self.calling, came.calling_aet),
            (self.called, came.called_aet),
            (self.peer, came.peer),
        )
        found = ", ".join(found or "(unknown)" for one_of, found in asked if one_of)
        return Check(text=self.text, holds=self.admits(came), found=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Orientation:
    """Its slices are within :data:`hipscore.series.MAX_TILT_DEG` of this plane, by geometry."""

    plane: Plane

    @property
    def text(self) -> str:
        return f"{self.plane} slices"

    def check(self, series: Offered) -> Check:
        normal = _slice_normal(series.header)
        if normal is None:
            holds, found = False, "no usable Image Orientation (Patient)"
        else:
            tilts = {
                name: math.degrees(math.acos(min(1.0, abs(normal[axis]))))
                for name, axis in _NORMAL.items()
            }
            nearest = min(tilts, key=lambda name: tilts[name])
            holds = tilts[self.plane] <= MAX_TILT_DEG
            found = f"{nearest}, {tilts[self.plane]:.0f}° from {self.plane}"
        return Check(text=self.text, holds=holds, found=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class FatSuppressed:
    """Its header shows fat suppression (:func:`hipscore.protocol.fat_suppressed`), or not."""

    wanted: bool = True

    @property
    def text(self) -> str:
        return "fat suppressed" if self.wanted else "not fat suppressed"

    def check(self, series: Offered) -> Check:
        shows = fat_suppressed(series.header)
        return Check(
            text=self.text,
            holds=shows is self.wanted,
            found="fat suppression by its header" if shows else "nothing shows fat suppression",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyPart:
    """It shows hip or pelvis, or nothing says that it shows something else."""

    @property
    def text(self) -> str:
        return "hip or pelvis, or no part of the body named"

    def check(self, series: Offered) -> Check:
        found = shown(series.header)
        word = f" ({found.word!r})" if found.word else ""
        return Check(
            text=self.text,
            holds=found.region is not Region.OTHER,
            found=f"{found.region.value}{word}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """All its images are computed from others: reformats, projections, subtractions, maps."""

    wanted: bool = True

    @property
    def text(self) -> str:
        if self.wanted:
            return "computed images (MPR, MIP, subtraction, map)"
        return "not computed from other images"

    def check(self, series: Offered) -> Check:
        computed = all(
            _COMPUTED & {value.upper() for value in each.image_type} for each in series.instances
        )
        kinds = sorted({"\\".join(each.image_type) for each in series.instances})[:3]
        return Check(
            text=self.text,
            holds=computed is self.wanted,
            found=", ".join(filter(None, kinds)) or "no Image Type",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """An attribute of the first image; every test that is given has to hold.

    Parameters
    ----------
    path
        Keywords, or ``(gggg,eeee)``, from the outermost sequence inwards. An attribute that
        is not at the top level is looked for in the functional groups of a multi-frame image.
    one_of
        A value equals one of these; capitals do not matter.
    pattern
        A regular expression that is found in a value.
    low, high
        A value is a number within these bounds.
    exists
        There is a value, or there is none.
    """

    path: tuple[str, ...]
    one_of: tuple[str, ...] | None = None
    pattern: re.Pattern[str] | None = None
    low: float | None = None
    high: float | None = None
    exists: bool | None = None

    def check(self, series: Offered) -> Check:
        there = values(series.header, self.path)[:MOST_VALUES]
        found = "\\".join(there) if there else "(absent)"
        return Check(
            text=self.text,
            holds=self._holds(there),
            found="(not shown: it tells of whom the image is)"
            if there and self.identifying
            else found[: 2 * LONGEST_VALUE],
        )

    @property
    def identifying(self) -> bool:
        """Whether its values tell of whom an image is."""
        return any(map(identifies, self.path))

    def _holds(self, values: Sequence[str]) -> bool:
        if self.exists is not None and bool(values) is not self.exists:
            return False
        tests = []
        if self.one_of is not None:
            wanted = {each.casefold() for each in self.one_of}
            tests.append(any(each.casefold() in wanted or _same(each, wanted) for each in values))
        if self.pattern is not None:
            pattern = self.pattern
            tests.append(any(pattern.search(each[:LONGEST_VALUE]) for each in values))
        if self.low is not None or self.high is not None:
            low = -math.inf if self.low is None else self.low
            high = math.inf if self.high is None else self.high
            tests.append(any(low <= _number(each) <= high for each in values))
        return all(tests)

    @property
    def text(self) -> str:
        name = ".".join(self.path)
        parts = []
        if self.exists is not None:
            parts.append("exists" if self.exists else "does not exist")
        if self.one_of is not None:
            hidden = "a value of the rule" if self.identifying else _listed(self.one_of)
            parts.append(f"is {hidden}")
        if self.pattern is not None:
            hidden = "the rule's pattern" if self.identifying else f"/{self.pattern.pattern}/"
            parts.append(f"matches {hidden}")
        if self.low is not None:
            parts.append(f"is at least {self.low:g}")
        if self.high is not None:
            parts.append(f"is at most {self.high:g}")
        return f"{name} {' and '.join(parts)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Several:
    """Some conditions together: all of them, or any."""

    parts: tuple[Condition, ...]
    every: bool

    @property
    def text(self) -> str:
        word = " and " if self.every else " or "
        return f"({word.join(part.text for part in self.parts)})"

    def check(self, series: Offered) -> Check:
        checks = [part.check(series) for part in self.parts]
        return Check(
            text=self.text,
            holds=(all if self.every else any)(check.holds for check in checks),
            found=", ".join(check.found for check in checks),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Not:
    """The contrary of a condition."""

    part: Condition

    @property
    def text(self) -> str:
        return f"not: {self.part.text}"

    def check(self, series: Offered) -> Check:
        checked = self.part.check(series)
        return Check(text=self.text, holds=not checked.holds, found=checked.found)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _same(text: str, wanted: set[str]) -> bool:
    """Whether the number in ``text`` is one of those wanted: 3.0 is 3."""
    number = _number(text)
    return any(number == _number(each) for each in wanted)


def _slice_normal(header: Dataset) -> tuple[float, float, float] | None:
    """Unit normal of the first slice (LPS); None without a usable orientation."""
    shared = first_item(header, "SharedFunctionalGroupsSequence")
    own = first_item(header, "PerFrameFunctionalGroupsSequence")
    for holder in (header, group(shared, own, "PlaneOrientationSequence")):
        cosines = np.array(numbers(holder, "ImageOrientationPatient"))
        if cosines.shape == (6,) and np.isfinite(cosines).all():
            normal = np.cross(cosines[:3], cosines[3:])
            length = float(np.linalg.norm(normal))
            if 0.5 < length < 2.0:
                x, y, z = (float(value) / length for value in normal)
                return (x, y, z)
    return None


def _within(address: str, network: Network) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found) in network


def _listed(values: Sequence[object]) -> str:
    return " or ".join(map(str, values))
