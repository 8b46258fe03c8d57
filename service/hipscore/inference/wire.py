"""Arrays between two processes: the raw float32 of ``(N, C, H, W)``, never longer than agreed."""

from __future__ import annotations

import math
import os
import socket
import struct
from multiprocessing.connection import Connection

import numpy as np

from hipscore.domain import FloatArray


class RefusedError(Exception):
    """What came over the wire is not what was agreed; or the other side says that of ours."""


def receive(connection: Connection, shape: tuple[int, ...]) -> FloatArray:
    """Read the values of an array.

    Raises
    ------
    RefusedError
        If their number is another.
    """
    size = 4 * math.prod(shape)
    data = connection.recv_bytes(size)
    if len(data) != size:
        raise RefusedError(f"{len(data)} bytes came, {shape} of float32 has {size}")
    return np.frombuffer(data, dtype="<f4").reshape(shape).copy()  # to be written to


def send(connection: Connection, values: FloatArray) -> None:
    """Write the values of an array."""
    connection.send_bytes(np.ascontiguousarray(values, dtype="<f4").ravel().view(np.uint8).data)


def limited(connection: Connection, seconds: float) -> None:
    """End what takes longer with an OSError (SO_RCVTIMEO, socket(7)); 0: wait for ever."""
    whole = int(seconds)
    value = struct.pack("@ll", whole, int((seconds - whole) * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            same.setsockopt(socket.SOL_SOCKET, option, value)
