"""Our reading and writing of C-STORE command sets against pynetdicom's."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import MRImageStorage
from pynetdicom import dsutils
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from hipscore.listener.command import StoreRequest, read_store_request, store_response

UID = "1.2.826.0.1.3680043.8.498.1"


def encoded(*, message_id: int = 7, uid: str = UID, data_set: bool = True) -> bytes:
    """A C-STORE-RQ command set as pynetdicom sends it."""
    primitive = C_STORE()
    primitive.MessageID = message_id
    primitive.AffectedSOPClassUID = MRImageStorage
    primitive.AffectedSOPInstanceUID = uid
    primitive.Priority = 2
    if data_set:
        primitive.DataSet = BytesIO(b"\x00" * 8)
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    command = b""
    for fragment in message.encode_msg(1, 0):
        assert isinstance(fragment, P_DATA)
        for _, value in fragment.presentation_data_value_list:
            if value[0] & 1:
                command += value[1:]
    return command


def test_a_request_is_read() -> None:
    assert read_store_request(encoded()) == StoreRequest(
        message_id=7, sop_class_uid=MRImageStorage, sop_instance_uid=UID
    )


@given(message_id=st.integers(0, 65535), tail=st.integers(1, 10**40))
def test_every_request_that_pynetdicom_writes_is_read(message_id: int, tail: int) -> None:
    uid = f"1.2.{tail}"
    request = read_store_request(encoded(message_id=message_id, uid=uid))
    assert request is not None
    assert (request.message_id, request.sop_instance_uid) == (message_id, uid)


def test_a_request_without_a_data_set_is_not_ours() -> None:
    assert read_store_request(encoded(data_set=False)) is None


@given(st.binary(max_size=300))
def test_noise_is_not_ours(noise: bytes) -> None:
    assert read_store_request(noise) is None


@given(data=st.data())
def test_a_damaged_request_is_not_ours_or_still_a_request(data: st.DataObject) -> None:
    whole = encoded()
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert read_store_request(whole[:cut]) is None
    place = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255))
    changed = whole[:place] + bytes([value]) + whole[place + 1 :]
    request = read_store_request(changed)
    assert request is None or isinstance(request.message_id, int)


@given(
    status=st.sampled_from((0x0000, 0xA700, 0xC210, 0xC211)),
    comment=st.text(max_size=200),
    message_id=st.integers(0, 65535),
)
def test_pynetdicom_reads_every_answer(status: int, comment: str, message_id: int) -> None:
    request = StoreRequest(
        message_id=message_id, sop_class_uid=MRImageStorage, sop_instance_uid=UID
    )
    answer = store_response(request, status, comment)
    read = dsutils.decode(BytesIO(answer), True, True)
    assert read.CommandGroupLength == len(answer) - 12
    assert read.CommandField == 0x8001
    assert read.MessageIDBeingRespondedTo == message_id
    assert read.Status == status
    assert (read.AffectedSOPClassUID, read.AffectedSOPInstanceUID) == (MRImageStorage, UID)
    assert read.CommandDataSetType == 0x0101
    assert len(read.get("ErrorComment", "") or "") <= 64


@pytest.mark.parametrize("length", (63, 64))
def test_uids_of_odd_length_are_padded(length: int) -> None:
    uid = ("1.2." + "3" * 64)[:length]
    request = read_store_request(encoded(uid=uid))
    assert request is not None
    assert request.sop_instance_uid == uid
    answer = store_response(request, 0)
    assert len(answer) % 2 == 0
    assert struct.unpack("<L", answer[8:12])[0] == len(answer) - 12
