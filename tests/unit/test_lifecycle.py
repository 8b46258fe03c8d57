"""State machines cell by cell, backoff, completeness, matching and job keys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hipscore.domain import ReceivedInstance
from hipscore.lifecycle import (
    DELIVERY,
    JOB,
    SERIES,
    CloseReason,
    DeliveryEvent,
    DeliveryState,
    IllegalMove,
    JobEvent,
    JobState,
    SeriesEvent,
    SeriesState,
    Table,
    backoff,
    completeness,
    instances_digest,
    job_key,
    next_state,
)

# The machines as a reader draws them: a row per state, a column per event, - for illegal.
SERIES_CELLS = """
            image      close     match    ignore   order
RECEIVING   RECEIVING  COMPLETE  -        -        -
COMPLETE    RECEIVING  -         MATCHED  IGNORED  -
MATCHED     RECEIVING  -         -        -        -
IGNORED     RECEIVING  -         -        -        MATCHED
"""
JOB_CELLS = """
              claim      analysed  not_scorable  fail    postpone  expire  retry   cancel
QUEUED        ANALYSING  -         -             -       -         -       QUEUED  FAILED
ANALYSING     -          ANALYSED  NOT_SCORABLE  FAILED  QUEUED    QUEUED  -       FAILED
ANALYSED      -          -         -             -       -         -       -       -
NOT_SCORABLE  -          -         -             -       -         -       -       -
FAILED        -          -         -             -       -         -       QUEUED  -
"""
DELIVERY_CELLS = """
          claim   sent commit    refuse  exhaust   decline postpone expire  retry   withdraw
PENDING   SENDING -    -         -       -         -       -        -       PENDING REFUSED
SENDING   -       SENT -         REFUSED EXHAUSTED -       PENDING  PENDING -       -
SENT      -       -    COMMITTED REFUSED EXHAUSTED PENDING -        -       PENDING -
COMMITTED -       -    -         -       -         -       -        -       PENDING -
REFUSED   -       -    -         -       -         -       -        -       PENDING -
EXHAUSTED -       -    -         -       -         -       -        -       PENDING REFUSED
"""


def cells(
    name: str,
    drawn: str,
    table: Table[Any, Any],
    states: type[StrEnum],
    events: type[StrEnum],
) -> Iterator[Any]:
    header, *rows = (line.split() for line in drawn.strip().splitlines())
    for state, *row in rows:
        for event, cell in zip(header, row, strict=True):
            after = None if cell == "-" else states(cell)
            yield pytest.param(
                table, states(state), events(event), after, id=f"{name}-{state}-{event}"
            )


SERIES_TESTS = list(cells("series", SERIES_CELLS, SERIES, SeriesState, SeriesEvent))
JOB_TESTS = list(cells("job", JOB_CELLS, JOB, JobState, JobEvent))
DELIVERY_TESTS = list(cells("delivery", DELIVERY_CELLS, DELIVERY, DeliveryState, DeliveryEvent))


@pytest.mark.parametrize(
    ("table", "state", "event", "after"), (*SERIES_TESTS, *JOB_TESTS, *DELIVERY_TESTS)
)
def test_cell(
    table: Table[Any, Any], state: StrEnum, event: StrEnum, after: StrEnum | None
) -> None:
    if after is None:
        with pytest.raises(IllegalMove, match=rf"'{event.value}' is not possible in .*{state}"):
            next_state(table, state, event)
    else:
        assert next_state(table, state, event) is after


@pytest.mark.parametrize(
    ("tests", "states", "events"),
    (
        (SERIES_TESTS, SeriesState, SeriesEvent),
        (JOB_TESTS, JobState, JobEvent),
        (DELIVERY_TESTS, DeliveryState, DeliveryEvent),
    ),
)
def test_every_cell_of_the_table_is_tested(
    tests: list[Any], states: type[StrEnum], events: type[StrEnum]
) -> None:
    tested = {(parameters.values[1], parameters.values[2]) for parameters in tests}
    assert tested == {(state, event) for state in states for event in events}


def test_an_illegal_move_says_what_would_be_legal() -> None:
    with pytest.raises(IllegalMove, match="possible: claim, retry"):
        next_state(JOB, JobState.QUEUED, JobEvent.FAIL)
    with pytest.raises(IllegalMove, match="; this state is final"):
        next_state(JOB, JobState.ANALYSED, JobEvent.RETRY)


# --- backoff -----------------------------------------------------------------------------


def test_backoff_doubles_from_ten_seconds_to_four_hours() -> None:
    assert [backoff(n) for n in range(1, 6)] == [10, 20, 40, 80, 160]
    assert backoff(11) == 10_240
    assert backoff(12) == backoff(10_000) == 4 * 3600


@pytest.mark.parametrize("attempt", (0, -1))
def test_backoff_counts_attempts_from_one(attempt: int) -> None:
    with pytest.raises(ValueError, match=f"from 1, not {attempt}"):
        backoff(attempt)


# --- completeness ------------------------------------------------------------------------

CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def stack(
    count: int, *, step_mm: float = 4.4, expected: int | None = None
) -> list[ReceivedInstance]:
    """Coronal slices, the first in front, numbered from 1."""
    return [
        ReceivedInstance(
            study_instance_uid="1.2.1",
            series_instance_uid="1.2.2",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
            sop_instance_uid=f"1.2.3.{index}",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            sha256=f"{index:064x}",
            size=1000,
            instance_number=index + 1,
            images_in_acquisition=expected,
            position_mm=(-200.0, -60.0 + index * step_mm, 150.0),
            orientation=CORONAL,
            image_type=("ORIGINAL", "PRIMARY", "M"),
        )
        for index in range(count)
    ]


def verdict(images: list[ReceivedInstance], *, one_association: bool = True) -> str | None:
    return completeness(images, released=True, one_association=one_association)


def test_a_contiguous_stack_on_one_released_association_is_complete() -> None:
    assert verdict(stack(20)) is CloseReason.CONTIGUOUS


def test_five_slices_are_the_fewest_that_prove_anything() -> None:
    assert verdict(stack(5)) is CloseReason.CONTIGUOUS
    assert verdict(stack(4)) is None
    assert verdict(stack(4, expected=4)) is None


def test_nothing_is_complete_before_the_release() -> None:
    for images in (stack(20), stack(20, expected=20), [replace(stack(1)[0], number_of_frames=20)]):
        assert completeness(images, released=False, one_association=True) is None


def test_nothing_received_is_not_complete() -> None:
    assert verdict([]) is None


def test_contiguous_slices_from_two_associations_wait_for_the_quiet_period() -> None:
    assert verdict(stack(20), one_association=False) is None


def test_the_expected_count_is_proof_over_any_number_of_associations() -> None:
    assert verdict(stack(20, expected=20), one_association=False) is CloseReason.EXPECTED_COUNT


@pytest.mark.parametrize("expected", (19, 21))
def test_another_count_than_expected_is_no_proof_by_count(expected: int) -> None:
    assert verdict(stack(20, expected=expected), one_association=False) is None


def test_half_of_what_is_announced_is_not_the_whole() -> None:
    half = stack(12, expected=24)
    assert verdict(half) is None
    assert verdict(stack(12)) is CloseReason.CONTIGUOUS


def test_counts_that_contradict_each_other_are_no_proof_by_count() -> None:
    images = stack(20, expected=20)
    images[3] = replace(images[3], images_in_acquisition=40)
    assert verdict(images, one_association=False) is None


def test_a_multi_frame_object_is_complete_in_itself() -> None:
    enhanced = replace(
        stack(1)[0], number_of_frames=24, position_mm=None, orientation=None, instance_number=None
    )
    assert verdict([enhanced], one_association=False) is CloseReason.MULTI_FRAME


def test_a_multi_frame_object_among_single_frames_proves_nothing() -> None:
    images = stack(20)
    images[0] = replace(images[0], number_of_frames=24, position_mm=None)
    assert verdict(images) is None


def test_a_missing_slice_is_no_contiguous_stack() -> None:
    images = stack(20)
    del images[7]
    assert verdict(images) is None


def test_a_missing_slice_shows_in_the_geometry_without_instance_numbers() -> None:
    images = [replace(image, instance_number=None) for image in stack(20)]
    assert verdict(images) is CloseReason.CONTIGUOUS
    del images[7]
    assert verdict(images) is None


def test_half_of_an_interleaved_stack_shows_in_the_instance_numbers() -> None:
    assert verdict(stack(20)[::2]) is None


def test_some_instance_numbers_missing_is_no_proof() -> None:
    images = stack(20)
    images[0] = replace(images[0], instance_number=None)
    assert verdict(images) is None


def test_two_images_at_one_position_are_no_contiguous_stack() -> None:
    images = stack(20)
    images[5] = replace(images[5], position_mm=images[6].position_mm)
    assert verdict(images) is None


def test_all_images_at_one_position_are_no_stack() -> None:
    assert verdict(stack(6, step_mm=0.0)) is None


def test_a_slice_without_sound_geometry_is_no_proof() -> None:
    sound = stack(20)[5]
    for bare in (
        replace(sound, position_mm=None),
        replace(sound, orientation=None),
        replace(sound, orientation=(1.0, 0.0, 0.0)),
        replace(sound, orientation=(1.0, 0.0, 0.0, 0.0, 0.0, math.nan)),
        replace(sound, position_mm=(0.0, math.inf, 0.0)),
    ):
        assert verdict([*stack(20)[:5], bare, *stack(20)[6:]]) is None


def test_one_tilted_slice_is_no_stack() -> None:
    images = stack(20)
    c, s = math.cos(math.radians(10)), math.sin(math.radians(10))
    images[9] = replace(images[9], orientation=(c, s, 0.0, 0.0, 0.0, -1.0))
    assert verdict(images) is None


def test_an_oblique_stack_is_contiguous_along_its_own_normal() -> None:
    c, s = math.cos(math.radians(17)), math.sin(math.radians(17))
    images = [
        replace(
            image,
            orientation=(c, s, 0.0, 0.0, 0.0, -1.0),
            position_mm=(-200.0 - 4.4 * i * s, -60.0 + 4.4 * i * c, 150.0),
        )
        for i, image in enumerate(stack(20))
    ]
    assert verdict(images) is CloseReason.CONTIGUOUS


@given(order=st.permutations(range(12)), jitter=st.floats(-0.02, 0.02))
def test_the_order_of_arrival_and_rounding_do_not_matter(order: list[int], jitter: float) -> None:
    images = stack(12)
    x, y, z = images[4].position_mm or (0.0, 0.0, 0.0)
    images[4] = replace(images[4], position_mm=(x, y + jitter, z))
    assert verdict([images[i] for i in order]) is CloseReason.CONTIGUOUS


# --- keys --------------------------------------------------------------------------------


def test_the_digest_is_of_the_set_of_uids() -> None:
    digests = {instances_digest(order) for order in permutations(("1.2", "1.3", "1.4"))}
    assert len(digests) == 1
    assert instances_digest(["1.2", "1.3", "1.4", "1.4"]) in digests
    assert instances_digest(["1.2", "1.3"]) not in digests
    assert instances_digest(["1.2", "1.34"]) != instances_digest(["1.23", "1.4"])


def test_every_part_of_the_job_key_matters() -> None:
    parts: dict[str, Any] = {
        "series_instance_uid": "1.2",
        "instances_digest": "aa",
        "bundle_id": "hips",
        "bundle_sha256": "bb",
    }
    changed = [job_key(**{**parts, name: value + "0"}) for name, value in parts.items()]
    assert job_key(**parts) == job_key(**parts)
    assert len({job_key(**parts), *changed}) == 5
