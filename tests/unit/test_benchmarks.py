"""What the benchmarks compute from what they measured, and how they keep it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import tables, usage
from benchmarks.processes.__main__ import cumulative
from benchmarks.throughput.overhead import counted, unexplained

PAGE = (
    "Words.\n<!-- a: begin -->\nold\n<!-- a: end -->\nMore.\n<!-- b: begin -->\n<!-- b: end -->\n"
)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_a_table_has_words_to_the_left_and_numbers_to_the_right() -> None:
    assert tables.table(["what", "s"], [["a", "10.5"], ["long name", "2"]]).splitlines() == [
        "| what      |    s |",
        "| --------- | ---: |",
        "| a         | 10.5 |",
        "| long name |    2 |",
    ]


def test_keeping_replaces_one_table_and_leaves_the_words_around_it(page: Path) -> None:
    tables.keep("a", "new\n", page)
    tables.keep("a", "newer", page)
    assert page.read_text("utf-8") == PAGE.replace("old", "newer")


def test_keeping_a_table_the_page_has_no_place_for_is_refused(page: Path) -> None:
    with pytest.raises(ValueError, match="no marks for 'c'"):
        tables.keep("c", "new", page)
    assert page.read_text("utf-8") == PAGE


@pytest.mark.parametrize(("count", "expected"), ((1, 0), (19, 18), (20, 19), (100, 95)))
def test_the_95th_percentile_is_one_of_the_values(count: int, expected: int) -> None:
    assert tables.p95([float(each) for each in reversed(range(count))]) == expected


def test_every_benchmark_has_its_place_on_the_page() -> None:
    kept = tables.PAGE.read_text("utf-8")
    for name in (
        *("machine", "inference", "latency", "parts", "throughput", "database"),
        *("processes", "intake", "pages", "gpu"),
    ):
        assert kept.count(f"<!-- {name}: begin -->") == kept.count(f"<!-- {name}: end -->") == 1


def test_what_a_job_costs_beyond_computing_is_left_over() -> None:
    # two jobs in 3 s: 1.0 s each computed, 0.2 s each sent, 0.1 s each read, 0.2 s each left.
    # Stages that ask the database too count as left over but for the reading in them.
    timings = [{"read": 0.25, "segment": 0.7, "orders": 0.01, "seg": 0.3}] * 2
    left = unexplained(span=3.0, timings=timings, network=0.4, reading=0.1)
    assert left == pytest.approx(0.2)


def test_what_is_counted_is_in_tasks_and_between_them_in_the_order_they_ran() -> None:
    tasks = [
        {"begun": 10.0, "ended": 11.0, "database": 0.02, "publishing": 0.004, "processor": 0.01},
        {"begun": 11.3, "ended": 12.0},
        {"begun": 11.1, "ended": 11.2, "database": 0.01},
    ]
    found = counted(tasks, 2)
    assert found.database == pytest.approx(0.015)
    assert found.publishing == pytest.approx(0.002)
    assert found.between == pytest.approx(0.1)
    assert found.processor == pytest.approx(0.005)
    assert found.total == pytest.approx(0.117)


def test_the_time_of_an_import_is_that_of_the_module_itself() -> None:
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import json.decoder"],
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    assert 0 < cumulative("json.decoder", said) < cumulative("json", said)
    with pytest.raises(ValueError, match=r"json\.encod was not imported"):
        cumulative("json.encod", said)


@pytest.mark.parametrize(
    ("command", "expected"),
    (
        ("/v/bin/python -P -m hipscore work --queue analysis --concurrency 2", "worker (analysis)"),
        ("/v/bin/python -P -m hipscore listen", "listener"),
        ("/v/bin/python -P -m hipscore serve", "API"),
        ("/r/bin/valkey-server unixsocket:/d/valkey.sock", "Valkey"),
        ("/usr/bin/env", "env"),
    ),
)
def test_a_process_is_named_by_its_command_line(command: str, expected: str) -> None:
    assert usage.name(command.split()) == expected


def test_a_child_is_found_below_its_parent_and_uses_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            assert child.pid in usage.children(os.getpid())
            assert usage.alive(child.pid)
            assert 0 < usage.memory(child.pid).pss <= usage.memory(child.pid).rss
        finally:
            child.kill()
    assert not usage.alive(child.pid)
    assert usage.seconds(child.pid) == 0
