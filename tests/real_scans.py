"""Where real scans lie, beside the project, and what says so when they do not.

They are not part of the project. A test that reads some is marked ``real_scans`` and names the
folder: ``@pytest.mark.real_scans(real_scans.PELVES)``. Where the folder is missing the test does
not run, and the last line of the run says how many did not.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "shared" / "data"
#: coronal T1 series of whole pelves, and where their femoral heads are
PELVES = ROOT / "pelvis-cor-t1"
HEADS = PELVES / "femoral_heads.csv"
#: headers as the vendors write them
VENDORS = ROOT / "mr-vendors"

_NAME = "real_scans"


def skip_without(items: Iterable[pytest.Item]) -> None:
    """Skip the tests whose folder is not there."""
    for item in items:
        if mark := item.get_closest_marker(_NAME):
            (folder,) = mark.args
            if not folder.is_dir():
                item.add_marker(pytest.mark.skip(reason=f"no real scans in {folder}"))


def say_without(reporter: pytest.TerminalReporter) -> None:
    """Say in one line how many tests did not run for want of scans."""
    missed = [each for each in reporter.stats.get("skipped", ()) if _NAME in each.keywords]
    if missed:
        reporter.write_line(
            f"{len(missed)} tests did not run: they read real scans, and {ROOT} has none",
            yellow=True,
        )
