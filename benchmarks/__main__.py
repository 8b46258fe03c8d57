"""All benchmarks, one after the other: ``python -m benchmarks [--fast] [--keep]``.

Each runs in a process of its own and prints its tables. What fails is named at the end and
does not stop the others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from importlib import util

from benchmarks import tables

#: name and options, in the order of docs/performance.md
BENCHMARKS: tuple[tuple[str, ...], ...] = (
    ("inference",),
    ("latency",),
    ("throughput",),
    ("database",),
    ("processes",),
    ("intake", "--both"),
    ("pages",),
    ("gpu",),
)
#: how long the small forms, and all of it, take on two idle cores
FAST, WHOLE = "three minutes", "three quarters of an hour"


def main() -> None:
    """Run them, and end with 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="small forms")
    parser.add_argument("--keep", action="store_true", help=f"write the tables to {tables.PAGE}")
    parser.add_argument("--only", nargs="+", choices=[each[0] for each in BENCHMARKS])
    arguments = parser.parse_args()
    print(f"about {FAST if arguments.fast else WHOLE} on two idle cores", flush=True)
    if arguments.keep:
        tables.keep("machine", tables.machine())
    options = [f"--{name}" for name in ("fast", "keep") if getattr(arguments, name)]
    failed, spent = [], []
    for name, *more in BENCHMARKS:
        if name not in (arguments.only or [name]):
            continue
        if util.find_spec(f"benchmarks.{name}") is None:
            failed.append(f"{name} (there is no such benchmark)")
            continue
        print(f"\n## {name}\n", flush=True)
        begun = time.perf_counter()
        command = [sys.executable, "-m", f"benchmarks.{name}", *more, *options]
        code = subprocess.run(command, check=False).returncode
        spent.append([name, f"{time.perf_counter() - begun:.0f}", "failed" if code else "ran"])
        if code:
            failed.append(name)
    print(f"\n{tables.table(['benchmark', 'seconds', ''], spent)}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
