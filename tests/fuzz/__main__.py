"""``python -m tests.fuzz``: the long run, and the table of what became of every mutant."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests import real_scans
from tests.fuzz import sending
from tests.fuzz.watching import WORKER_MB, Analysts

_ANSWERS = ("0000", "C2xx", "A7xx", "aborted", "hang")
_FATAL = ("crash", "hang", "memory", "defect")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the fuzzer; 1 where anything was violated."""
    chosen = _arguments(arguments)
    real = real_scans.ROOT.is_dir() and not chosen.no_real
    print(
        f"seed {chosen.seed}, {chosen.objects} objects and {chosen.attacks} attacks for the "
        f"listener, {chosen.series} series for the analysis, "
        f"{'with' if real else 'without'} real scans"
    )
    violations = []
    if chosen.objects or chosen.attacks:
        violations += _listener(chosen, real=real)
    if chosen.series:
        violations += _analysis(chosen, real=real)
    print()
    for line in violations:
        print(f"VIOLATION {line}")
    print(f"{len(violations)} violations")
    return 1 if violations else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--objects", type=int, default=20_000, help="mutants for the listener")
    parser.add_argument("--attacks", type=int, default=1_400, help="broken PDUs for the listener")
    parser.add_argument("--series", type=int, default=2_000, help="series for the analysis")
    parser.add_argument("--seed", type=int, default=0, help="number of the first of each")
    parser.add_argument("--no-real", action="store_true", help="leave real scans out")
    return parser.parse_args(arguments)


def _listener(chosen: argparse.Namespace, *, real: bool) -> list[str]:
    started = time.monotonic()
    numbers = range(chosen.seed, chosen.seed + chosen.objects)
    attacks = range(chosen.seed, chosen.seed + chosen.attacks)
    with sending.running_listener() as listener:
        fates = sending.send_objects(listener, numbers, real=real) if numbers else []
        below = sending.attack(listener, attacks)
        peak, alive = listener.peak_mb, listener.alive()
        complaints = listener.complaints()
    _print_table(sending.tally(fates), "answered", _ANSWERS)
    _print_table(sending.tally(below), "attack", ("survived", "lost", "refused"))
    spent = time.monotonic() - started
    print(f"listener: peak {peak:.0f} MB, {spent:.0f} s, {len(fates) / spent:.0f} objects/s")
    found = [f"object {f.number} ({f.how}): {f.defect}" for f in fates if f.defect]
    found += [f"attack {f.number} ({f.how}): {f.defect}" for f in below if f.defect]
    found += complaints
    if not alive:
        found.append("the listener's process ended")
    if peak > sending.LISTENER_MB:
        found.append(f"the listener took {peak:.0f} MB, {sending.LISTENER_MB:.0f} are the limit")
    return found


def _analysis(chosen: argparse.Namespace, *, real: bool) -> list[str]:
    started = time.monotonic()
    found: dict[str, Counter[str]] = {}
    violations, peak, objects = [], 0.0, 0
    numbers = range(chosen.seed, chosen.seed + chosen.series)
    for said in _shown(Analysts(real=real).outcomes(numbers), len(numbers)):
        found.setdefault(said["how"], Counter())[said["outcome"]] += 1
        peak, objects = max(peak, said["peak_mb"]), objects + said["objects"]
        if "defect" in said:
            where = said.get("trace", "").strip().splitlines()[-3:-2]
            violations.append(
                f"series {said['number']} ({said['how']}, {said['source']}): {said['outcome']}: "
                f"{said['defect']} {' '.join(where).strip()}"
            )
    every = Counter[str]()
    for counted in found.values():
        every.update(counted)
    _print_table(found, "analysed", [name for name, _ in every.most_common()])
    spent = time.monotonic() - started
    print(
        f"analysis: {objects} objects in {sum(every.values())} series, peak {peak:.0f} MB of "
        f"{WORKER_MB:.0f}, {spent:.0f} s; " + ", ".join(f"{k} {every[k]}" for k in _FATAL)
    )
    return violations


def _shown(outcomes: Iterable[dict[str, Any]], total: int) -> Iterable[dict[str, Any]]:
    """Say now and then how far it is."""
    last = time.monotonic()
    for done, each in enumerate(outcomes, start=1):
        if time.monotonic() - last > 30 and sys.stderr.isatty():
            print(f"{done} of {total} series", file=sys.stderr)
            last = time.monotonic()
        yield each


def _print_table(found: Mapping[str, Counter[str]], first: str, columns: Sequence[str]) -> None:
    if not found:
        return
    rest = sorted({name for counted in found.values() for name in counted} - {*columns})
    heads = [first, "all", *columns, *rest]
    rows = [
        [how, str(sum(found[how].values())), *(str(found[how][c] or "") for c in heads[2:])]
        for how in sorted(found)
    ]
    total = Counter[str]()
    for counted in found.values():
        total.update(counted)
    rows.append(["all", str(total.total()), *(str(total[c]) for c in heads[2:])])
    widths = [max(len(row[n]) for row in [heads, *rows]) for n in range(len(heads))]
    print()
    for row in [heads, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
