"""A few hundred mutants, the same at each run: the short form of ``make fuzz``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hipscore.domain import ReasonCode
from hipscore.header import Unreadable, is_uid, read_header, read_image
from hipscore.listener import transfer_syntaxes
from tests.fuzz import analysing, sending, soak
from tests.fuzz.attacks import ATTACKS
from tests.fuzz.mutants import MUTATIONS, mutant, numbered
from tests.fuzz.sources import SYNTAXES, phantom_series, single_sources

#: objects for the listener; attacks on it; series for the analysis
OBJECTS, SERIES = 200, 15
#: a series no mutation of which takes long
_SOURCE = "phantom ExplicitVRLittleEndian"


def test_the_fuzzer_knows_every_transfer_syntax_of_the_listener() -> None:
    assert set(SYNTAXES) == set(transfer_syntaxes())


def test_what_is_taken_apart_is_put_together_again() -> None:
    for images in phantom_series().values():
        for source in images:
            assert source.parts().elements
            assert source.parts().encoded() == source.data


@pytest.mark.parametrize("how", list(MUTATIONS))
def test_a_mutant_is_the_same_by_its_number(how: str) -> None:
    source = phantom_series()[_SOURCE][0]
    made = [mutant(source, seed, how=how) for seed in range(8)]
    assert made == [mutant(source, seed, how=how) for seed in range(8)]
    assert len({each.data_set for each in made}) > 1 or len({each.syntax for each in made}) > 1


def test_the_listener_answers_every_mutant_and_survives_every_attack(tmp_path: Path) -> None:
    with sending.running_listener(tmp_path) as listener:
        fates = sending.send_objects(listener, range(OBJECTS))
        below = sending.attack(listener, range(len(ATTACKS)))
        complaints = listener.complaints()
        assert listener.alive()
        assert listener.peak_mb < sending.LISTENER_MB
    assert [fate for fate in (*fates, *below) if fate.defect] == []
    assert complaints == []
    answers = Counter(fate.answer for fate in fates)
    assert answers["0000"] > OBJECTS / 4
    assert answers["C2xx"] > OBJECTS / 20


@pytest.mark.parametrize("number", range(SERIES))
def test_a_mutated_series_has_a_score_or_a_reason(number: int) -> None:
    said = analysing.outcome(number)
    assert "defect" not in said, said["trace"]
    assert said["outcome"] in {"scored", "unreadable", *(code.value for code in ReasonCode)}


@settings(max_examples=100)
@given(number=st.integers(0, 10**6))
def test_a_header_is_read_or_refused(number: int) -> None:
    made = numbered(single_sources(), number)
    try:
        header = read_header(made.file)
    except Unreadable:
        return
    assert is_uid(header.study_instance_uid)
    assert is_uid(header.sop_instance_uid)
    assert header.number_of_frames >= 1
    assert len(read_image(made.file)) > 0


def test_a_growing_process_and_a_falling_rate_are_noticed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flat = [soak.Sample(n * 100, float(n), {"listen": 100.0}) for n in range(100)]
    growing = [soak.Sample(n * 100, float(n), {"listen": 100.0 + n}) for n in range(100)]
    slower = [soak.Sample(n * 100, float(n**2), {"listen": 100.0}) for n in range(100)]
    assert soak.judge(flat, 3000) == []
    assert "grew by" in soak.judge(growing, 3000)[0]
    assert "the rate fell" in soak.judge(slower, 3000)[0]
    assert "listen" in capsys.readouterr().out
