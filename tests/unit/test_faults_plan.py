"""The fault suite leaves no move of the three state machines out, and its table adds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from hipscore.lifecycle import DELIVERY, JOB, SERIES
from tests.faults import plan, table
from tests.faults.strikes import UNREACHED, strikes
from tests.faults.verdict import Round

_ROWS = {
    f"{machine}.{event.value}.{state.value}"
    for machine, moves in (("series", SERIES), ("job", JOB), ("delivery", DELIVERY))
    for state, events in moves.items()
    for event in events
}


@pytest.mark.parametrize("when", ("before", "after"))
def test_something_dies_in_every_row_of_the_tables(when: str) -> None:
    struck = {
        row for each in strikes() if f" {when} " in f" {each.name} " for row in each.row.split()
    }
    assert struck >= _ROWS - UNREACHED.keys()
    assert not struck & UNREACHED.keys()
    assert UNREACHED.keys() <= _ROWS


@pytest.mark.parametrize("kind", ("sqlite", "postgresql"))
def test_a_long_plan_has_as_many_faults_as_asked_for_and_each_kind_once(kind: str) -> None:
    faults = plan.long_plan(kind, 150, seed=3, own_disk=True)
    assert sum(each.faults for each in faults) >= 150
    once = {each for each in strikes() if each.database in {"", kind}}
    every = {*once, *plan.surroundings(kind, own_disk=True)}
    assert {each.name for each in every} <= {each.name for each in faults}
    assert [each.name for each in plan.long_plan(kind, 150, seed=3, own_disk=True)] == [
        each.name for each in faults
    ]


@pytest.mark.parametrize("kind", ("sqlite", "postgresql"))
def test_the_fast_plan_names_faults_that_exist(kind: str) -> None:
    assert len(plan.fast_plan(kind)) >= 12


def test_the_table_adds_up_and_replaces_the_one_in_the_page(tmp_path: Path) -> None:
    good = Round(number=1, kind="broker wiped", over_at=10.0, settled_at=12.5)
    storm = Round(number=2, kind="storm", faults=3, over_at=1.0, settled_at=5.0, lost=["one"])
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n", "utf-8")
    table.write(page, table.markdown([good, storm], about="Two rounds."))
    written = page.read_text("utf-8").splitlines()
    assert "old" not in written
    assert "| broker wiped | 1 | 0 | 0 | 0 | 0 | 2.5 | 2.5 |" in written
    assert "| storm | 3 | 1 | 0 | 0 | 0 | 4.0 | 4.0 |" in written
    assert "| all | 4 | 1 | 0 | 0 | 0 | 3.2 | 4.0 |" in written
    assert (written[0], written[-1]) == ("before", "after")


def test_a_page_without_a_place_for_the_table_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing", "utf-8")
    with pytest.raises(ValueError, match="faults: begin"):
        table.write(page, "table")
