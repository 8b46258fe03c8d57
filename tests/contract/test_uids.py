"""Identity of the outputs: the same job gives the same UIDs, everywhere and always."""

from __future__ import annotations

import dataclasses
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from hipscore.reporting import ReportContext, uids

PART = st.text(min_size=1, max_size=40)


@given(st.lists(PART, min_size=1, max_size=4))
def test_a_derived_uid_is_a_valid_uuid_based_uid(parts: list[str]) -> None:
    uid = uids.derive(*parts)
    assert UID(uid).is_valid
    number = uuid.UUID(int=int(uid.removeprefix("2.25.")))
    assert number.version == 8
    assert number.variant == uuid.RFC_4122


@given(st.lists(PART, min_size=1, max_size=4), st.lists(PART, min_size=1, max_size=4))
def test_uids_are_the_same_for_the_same_parts_only(one: list[str], other: list[str]) -> None:
    assert (uids.derive(*one) == uids.derive(*other)) == (one == other)


def test_a_uid_never_changes_from_release_to_release() -> None:
    assert uids.derive("job", "seg") == "2.25.229925853816420420130364731565428926603"
    assert uids.derive("ab", "c") != uids.derive("a", "bc")


@pytest.mark.parametrize("parts", ((), ("",), ("job", "")))
def test_nothing_gives_no_uid(parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="non-empty parts"):
        uids.derive(*parts)


def test_a_context_needs_a_job_and_a_time_zone() -> None:
    context = ReportContext(
        job_key="job", created_at=datetime(2024, 1, 2, tzinfo=UTC), software_version="1"
    )
    with pytest.raises(ValueError, match="no time zone"):
        dataclasses.replace(context, created_at=datetime(2024, 1, 2))  # noqa: DTZ001 - the fault
    with pytest.raises(ValueError, match="job_key is empty"):
        dataclasses.replace(context, job_key="")
