"""Room on the disk is counted while it is being written, and given back whatever happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from hipscore.domain import Transient
from hipscore.keeping.room import Room
from hipscore.spool import Spool


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    made = Spool(tmp_path)
    monkeypatch.setattr(made, "free_bytes", lambda: 1000)
    return made


def test_what_is_being_written_counts(spool: Spool) -> None:
    room = Room(spool, reserve=100)
    with room.taken(500) as first, room.taken(500) as second:
        assert (first, second) == (True, False)
    with room.taken(900) as enough:
        assert enough


def test_a_disk_that_does_not_answer_takes_no_room(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(spool, reserve=100)

    def fail() -> int:
        raise Transient("the disk fails")

    with monkeypatch.context() as broken:
        broken.setattr(spool, "free_bytes", fail)
        for _ in range(5):
            with pytest.raises(Transient), room.taken(500):
                pass
    with room.taken(900) as enough:
        assert enough
