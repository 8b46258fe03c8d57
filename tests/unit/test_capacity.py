"""The capacity page is computed from figures that stand in one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import capacity
from benchmarks.capacity import Need
from hipscore.settings import Settings
from hipscore.worker.reaping import REAP_BATCH

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / capacity.PAGE).read_text()


def _between(name: str) -> str:
    found = re.search(rf"<!-- {name}: begin -->\n(.*?)\n<!-- {name}: end -->", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_page_has_the_tables_of_the_calculator() -> None:
    """Otherwise: python -m benchmarks.capacity --keep."""
    assert _between("figures") == capacity.figures()
    assert _between("needs") == capacity.needs(list(capacity.SITES))


def test_the_arithmetic_of_a_region_done_by_hand() -> None:
    need = Need(series_per_day=10_000)
    assert need.series == pytest.approx(2_000 / 3_600)
    assert need.images == pytest.approx(13.33, abs=0.01)
    assert need.megabits == pytest.approx(55.9, abs=0.1)  # 13.33 images of 524,288 bytes
    assert need.files == 7_200_000
    assert need.spool == pytest.approx(3.77e12, rel=0.01)


def test_twice_the_series_need_twice_of_everything_that_is_counted_in_fractions() -> None:
    one, two = Need(series_per_day=50_000), Need(series_per_day=100_000)
    for name in ("images", "transactions", "redis", "spool_day", "rows_year", "database_year"):
        assert getattr(two, name) == pytest.approx(2 * getattr(one, name)), name
        assert getattr(one, name) > 0, name


def test_nobody_is_planned_for_more_than_a_process_can_do() -> None:
    for site in (*capacity.SITES, 100_000, 300_000):
        need = Need(series_per_day=site)
        assert need.images / need.listeners < capacity.INTAKE.value
        assert need.series * capacity.WORKER_S.value / need.workers < 1
        assert need.series / need.gpus < capacity.gpu_series()


def test_a_beat_closes_as_many_series_as_the_code_says() -> None:
    assert capacity.REAPER.value == REAP_BATCH / Settings.model_fields["reap_seconds"].default


def test_every_figure_says_where_it_comes_from() -> None:
    for each in capacity.FIGURES:
        assert each.value > 0, each.words
        assert each.kind in {capacity.MEASURED, capacity.COMPUTED, capacity.ASSUMED}
        for page, anchor in re.findall(r"\]\(([a-z]+\.md)#?([a-z-]*)\)", each.source):
            text = (ROOT / "docs" / page).read_text()
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert not anchor or anchor in {each.lower().replace(" ", "-") for each in headings}
