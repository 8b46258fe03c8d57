"""Regular expressions of operators, bounded before they are used.

Python's ``re`` tries one way of matching after the other, and some patterns have more ways
than there is time. So the ways are counted first, from above: every quantifier and every
alternative multiplies them, the length of what is searched is known, and a pattern with more
than :data:`MOST_WAYS` is refused. A quantifier on a group that may itself match in several
ways is refused at once, because then they grow exponentially.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hipscore.conditions import LONGEST_VALUE

#: about a second of Python's time
MOST_WAYS = 100_000_000
_LONGEST_PATTERN = 500
_BOUNDS = re.compile(r"\{([0-9]*)(,?)([0-9]*)\}")
#: what may stand behind "(" and is no part of what is matched
_OPENING = re.compile(r"\(\?(?:P<\w+>|P=\w+|[aiLmsux-]+:?|<?[=!:>]|[:>])|\(")


@dataclass(slots=True)
class _Group:
    """What was read of a group so far."""

    alternatives: int = 1
    unbounded: int = 0
    ways: int = 1

    @property
    def varies(self) -> bool:
        return self.alternatives > 1 or self.unbounded > 0 or self.ways > 1


def compiled(text: str) -> re.Pattern[str]:
    """Compile a pattern; capitals do not matter.

    Raises
    ------
    ValueError
        If it is no regular expression, or one that may take too long.
    """
    if len(text) > _LONGEST_PATTERN:
        msg = f"a pattern has at most {_LONGEST_PATTERN} characters, this one {len(text)}"
        raise ValueError(msg)
    try:
        pattern = re.compile(text, re.IGNORECASE)
    except re.error as error:
        msg = f"no regular expression: {error}"
        raise ValueError(msg) from error
    ways = _ways(text)
    if ways > MOST_WAYS:
        msg = (
            "may take too long: fewer of * + ? {m,n} and | are allowed "
            "(three * or +, or two and some alternatives)"
        )
        raise ValueError(msg)
    return pattern


def _ways(text: str) -> int:
    """Upper bound of the ways in which a pattern can match a value, wherever it begins."""
    open_groups = [_Group()]
    at, last, previous = 0, None, False
    while at < len(text):
        sign = text[at]
        atom = False
        if sign == "\\":
            at, last, atom = at + 2, None, True
        elif sign == "[":
            at, last, atom = _behind_class(text, at), None, True
        elif sign == "(" and (opening := _OPENING.match(text, at)):
            open_groups.append(_Group())
            at = opening.end()
        elif sign == ")":
            last = open_groups.pop()
            _add(open_groups[-1], last)
            at, atom = at + 1, True
        elif sign == "|":
            open_groups[-1].alternatives += 1
            at += 1
        elif previous and (found := _quantifier(text, at)):
            least, most, at = found
            _repeat(open_groups[-1], last, least, most)
        else:
            at, last, atom = at + 1, None, True
        previous = atom
    whole = open_groups[0]
    # so many unbounded quantifiers, and the beginning, part the value among them
    parts = math.comb(LONGEST_VALUE + whole.unbounded + 1, whole.unbounded + 1)
    return parts * whole.ways * whole.alternatives


def _add(outer: _Group, inner: _Group) -> None:
    """What stands in a group counts where the group stands."""
    outer.unbounded += inner.unbounded
    outer.ways *= inner.ways * inner.alternatives


def _repeat(outer: _Group, inner: _Group | None, least: int, most: int | None) -> None:
    """Count a quantifier on a character, or on the group that was just closed."""
    fixed = most is not None and most <= 1
    if inner is not None and inner.varies and not fixed:
        msg = "nested quantifiers: what is repeated must not itself vary, as in (a+)* or (a|b)+"
        raise ValueError(msg)
    if most is None:
        outer.unbounded += 1
    else:
        outer.ways *= min(most, LONGEST_VALUE) - min(least, LONGEST_VALUE) + 1


def _quantifier(text: str, at: int) -> tuple[int, int | None, int] | None:
    """Least, most and end of the quantifier that stands here, or None."""
    simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if text[at] in simple:
        least, most = simple[text[at]]
        end = at + 1
    elif (found := _BOUNDS.match(text, at)) and (found[1] or found[3]):
        least = int(found[1] or 0)
        most = least if not found[2] else int(found[3]) if found[3] else None
        end = found.end()
    else:
        return None
    return least, most, end + (text[end : end + 1] in {"?", "+"})


def _behind_class(text: str, at: int) -> int:
    """Where a character class that begins here is over."""
    at += 1
    at += text[at : at + 1] == "^"
    at += text[at : at + 1] == "]"  # there it is a character
    while text[at] != "]":
        at += 2 if text[at] == "\\" else 1
    return at + 1
