"""A lease says which process holds it; a dead holder is recognised, a foreign one is not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hipscore.lease import holder_died, token


def test_tokens_differ_and_fit_their_column() -> None:
    tokens = {token() for _ in range(100)}
    assert len(tokens) == 100
    assert max(map(len, tokens)) <= 96


def test_the_living_holder_is_not_dead() -> None:
    assert not holder_died(token())


def test_a_holder_that_was_killed_is_dead() -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import os, signal; from hipscore.lease import token; "
                "print(token(), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
            ),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    said, _ = child.communicate(timeout=60)
    assert said.strip()
    assert holder_died(said.strip())


def test_a_zombie_is_dead_before_its_parent_notices() -> None:
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from hipscore.lease import token; print(token(), flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        lease = child.stdout.readline().strip()
        assert not holder_died(lease)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert holder_died(lease)


def test_another_process_under_the_same_number_is_another_holder() -> None:
    here, pid, started, rest = token().split("-")
    assert holder_died(f"{here}-{pid}-{int(started) + 1}-{rest}")


def test_what_runs_elsewhere_cannot_be_told() -> None:
    _, pid, started, rest = token().split("-")
    assert not holder_died(f"0123456789abcdef-{pid}-{int(started) + 1}-{rest}")
    assert not holder_died("lease-1")
    assert not holder_died("")


def test_what_cannot_be_looked_up_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    lease = token()

    def fail(self: Path) -> str:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(Path, "read_text", fail)
    assert not holder_died(lease)


def test_a_process_that_is_hidden_from_us_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    lease = token()

    def hide(self: Path) -> str:
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(Path, "read_text", hide)
    assert not holder_died(lease)
