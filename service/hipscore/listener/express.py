"""The way of a C-STORE request past pynetdicom's queues.

pynetdicom reads a message in pieces of 4 KB, hands it through three queues between two
threads that sleep a millisecond each time they find nothing, and decodes and encodes
every command set with pydicom. Its state machine is worth that during negotiation,
release and abort. For the one message that comes by the thousand, :class:`ExpressSocket`
reads straight from the socket into one buffer, has the request served on the thread that
read it, and writes the answer. Whatever is not exactly such a request is given back
unread, and pynetdicom does with it what it always does.
"""

from __future__ import annotations

import logging
import queue
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pynetdicom.association import Association
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket

from hipscore.listener.command import StoreRequest, read_store_request, store_response

log = logging.getLogger(__name__)

P_DATA_TF = 0x04
_COMMAND = 0x01  # message control header, PS3.8 E.2
_LAST = 0x02
#: a C-STORE-RQ command set has five or six elements with two UIDs; longer ones are not ours
_LONGEST_COMMAND = 1024
#: how much is read along with a header, bytes
_ALONG = 4096
#: the thread looks after its other duties when the sender pauses for so long, seconds
_PAUSE = 0.02
#: how long the association's own thread is kept awake for a message that was given back
_AWAKE = 0.5

#: how long it sleeps otherwise before it looks whether the association has ended, seconds
_DOZE = 0.2

#: PDU header (PS3.8 9.3.1): type, reserved, length; then of its first item: length, context
#: id, message control header (PS3.8 9.3.5.1, E.2)
_PDU = struct.Struct(">BxL")
_ITEM = struct.Struct(">LBB")


@dataclass(slots=True, kw_only=True)
class Incoming:
    """One C-STORE request with its data set: ``data`` starts with what ``head`` returned."""

    association: Association
    request: StoreRequest
    data: bytearray


class _NotOurs(Exception):
    """Something else than a C-STORE request: these bytes are pynetdicom's."""

    def __init__(self, data: bytearray) -> None:
        super().__init__()
        self.data = data


class _Invalid(Exception):
    """What came is no DICOM message (PS3.8 9.2.3, Evt19)."""


class _Oversize(Exception):
    """The message exceeds the largest object that is taken."""


class ExpressSocket(AssociationSocket):
    """A connection that serves C-STORE requests itself and passes on everything else.

    Parameters
    ----------
    association, client
        The association and its connected socket.
    head
        Given an association, a context id and a request: the first bytes of ``data``, or
        None if the request is to be left to pynetdicom.
    store
        Serves a request: status and comment of the answer. Does not raise.
    too_large
        Called when a message exceeds ``largest`` bytes; the association is aborted.
    """

    def __init__(
        self,
        association: Association,
        client: socket.socket,
        *,
        head: Callable[[Association, int, StoreRequest], bytes | None],
        store: Callable[[Incoming], tuple[int, str]],
        too_large: Callable[[Association], None],
        largest: int,
        largest_pdu: int,
    ) -> None:
        super().__init__(association, client_socket=client)
        self._head = head
        self._store = store
        self._too_large = too_large
        self._largest = largest
        self._largest_pdu = largest_pdu
        self._ahead = bytearray()  # read from the connection, and not yet used
        self._awake_until = 0.0

    @property
    def ready(self) -> bool:
        """Whether there is something for pynetdicom to read, after serving what is ours."""
        while self._ahead or self._arriving(0.0):
            if not self._ours_may_come():
                return True
            try:
                self._serve()
            except _NotOurs as other:
                self._ahead[:0] = other.data
                self._awake_until = time.monotonic() + _AWAKE
                self.assoc.dimse.msg_queue.put((None, None))  # wakes a waiting thread
                return True
            except _Oversize:
                self._too_large(self.assoc)
                return False
            except _Invalid:
                self.event_queue.put("Evt19")
                return False
            self.assoc.dul._idle_timer.restart()  # noqa: SLF001 - the thread that owns it
            self._arriving(_PAUSE)
        return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, first those that were given back; fewer at the end.

        Raises
        ------
        OSError
            If more is asked for than any PDU may hold. pynetdicom asks for what the length
            field of a PDU says, which may be 4 GB, and takes this for a broken connection.
        """
        if nr_bytes > self._largest_pdu:
            msg = f"PDU of {nr_bytes} bytes"
            raise OSError(msg)
        data = bytearray()
        self._append(data, nr_bytes)
        return data

    def close(self) -> None:
        """Close the connection, also when the peer was faster (shutdown(2) fails then)."""
        client = self.socket
        super().close()
        if client is not None:
            client.close()

    def spare(self, association: Association) -> None:
        """Let the association's own thread wait for messages instead of asking every millisecond.

        It has nothing to do but to serve what was given back, and to notice the end.
        """
        dimse = association.dimse
        ask = dimse.get_msg

        def get_msg(block: bool = False) -> Any:  # noqa: FBT001, FBT002 - pynetdicom's signature
            if block or time.monotonic() < self._awake_until:
                found = ask(block)
            else:
                try:
                    found = dimse.msg_queue.get(timeout=_DOZE)
                except queue.Empty:
                    found = None, None
            message = found[1]
            if message is None or message.is_valid_request or message.is_valid_response:
                return found
            # pynetdicom would pass over it, and the peer wait for an answer.
            log.warning(
                "%s sent half a request; association aborted", association.requestor.address
            )
            association.abort(block=False)
            return None, None

        dimse.get_msg = get_msg  # type: ignore[method-assign] # has no setting for it

    def guard(self, association: Association) -> None:
        """Keep what a peer sends from ending the thread that reads it.

        pynetdicom lets errors about odd messages, and events in states that do not have
        them, pass up to the thread's end. Both mean that the association is over.
        """
        decode, act = association.dimse.receive_primitive, association.dul.state_machine.do_action

        def receive_primitive(primitive: P_DATA) -> None:
            try:
                decode(primitive)
            except Exception as error:  # noqa: BLE001 - a hostile message fails anywhere
                log.warning(
                    "%s sent what is no DIMSE message (%s); association aborted",
                    association.requestor.address,
                    type(error).__name__,
                )
                association.dimse.message = None
                self.event_queue.put("Evt19")

        def do_action(event: str) -> None:
            try:
                act(event)
            except Exception as error:  # noqa: BLE001 - of whatever a PDU holds, or when it comes
                log.warning(
                    "%s sent a PDU that cannot be acted on (%s); connection closed",
                    association.requestor.address,
                    type(error).__name__,
                )
                association.dul.kill_dul()
                self.close()

        association.dimse.receive_primitive = receive_primitive  # type: ignore[method-assign]
        association.dul.state_machine.do_action = do_action  # type: ignore[method-assign]

    def _ours_may_come(self) -> bool:
        """Whether the next bytes begin a message, on an association that is established."""
        return self.assoc.is_established and self.assoc.dimse.message is None

    def _arriving(self, seconds: float) -> bool:
        """Whether there is something to read, the end of the connection included."""
        client = self.socket
        if client is None or client.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(client, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _serve(self) -> None:
        """Read one C-STORE request, have it stored, and answer it.

        Raises
        ------
        _NotOurs, _Invalid, _Oversize
            If something else came. Nothing was stored then.
        """
        context, request, start, rest = self._command()
        head = None if request is None else self._head(self.assoc, context, request)
        if request is None or head is None:
            raise _NotOurs(start)
        data = bytearray(head)
        self._gather(data, rest, context)
        status, comment = self._store(Incoming(association=self.assoc, request=request, data=data))
        answer = store_response(request, status, comment)
        item = _ITEM.pack(len(answer) + 2, context, _COMMAND | _LAST) + answer
        self.send(_PDU.pack(P_DATA_TF, len(item)) + item)

    def _command(self) -> tuple[int, StoreRequest | None, bytearray, int]:
        """Context id, request if it is one, the bytes read, and how many the PDU has left."""
        start = self._read(_PDU.size)
        if len(start) < _PDU.size or start[0] != P_DATA_TF:
            raise _NotOurs(start)
        start += self._read(_ITEM.size)
        if len(start) < _PDU.size + _ITEM.size:
            raise _NotOurs(start)
        _, pdu = _PDU.unpack_from(start)
        item, context, control = _ITEM.unpack_from(start, _PDU.size)
        whole = control & (_COMMAND | _LAST) == _COMMAND | _LAST
        if (
            not whole
            or not 2 < item <= _LONGEST_COMMAND
            or not item + 4 <= pdu <= self._largest_pdu
        ):
            raise _NotOurs(start)
        start += self._read(item - 2)
        request = read_store_request(bytes(start[_PDU.size + _ITEM.size :]))
        return context, request, start, pdu - 4 - item

    def _gather(self, data: bytearray, rest: int, context: int) -> None:
        """Append the fragments of the data set; ``rest`` bytes of the current PDU are left."""
        limit = len(data) + self._largest
        last = False
        while not last:
            if rest == 0:
                start = self._read(_PDU.size)
                if len(start) < _PDU.size or start[0] != P_DATA_TF:
                    raise _NotOurs(start)  # aborted, or closed
                _, rest = _PDU.unpack(start)
                if rest > self._largest_pdu:
                    raise _Oversize
                self.assoc.dul._idle_timer.restart()  # noqa: SLF001 - likewise
            start = self._read(_ITEM.size)
            if len(start) < _ITEM.size:
                raise _NotOurs(bytearray())  # closed
            item, owner, control = _ITEM.unpack(start)
            if owner != context or control & _COMMAND or not 2 <= item <= rest - 4:
                raise _Invalid
            if len(data) + item - 2 > limit:
                raise _Oversize
            if self._append(data, item - 2) < item - 2:
                raise _NotOurs(bytearray())
            rest -= item + 4
            last = bool(control & _LAST)
        if rest:
            raise _Invalid  # something after the last fragment, before its answer

    def _read(self, count: int) -> bytearray:
        """So many bytes, or fewer when the connection ends or is silent for too long.

        Headers are small: what comes with them is read along and used next.
        """
        while len(self._ahead) < count and (more := self._some()):
            self._ahead += more
        data = self._ahead[:count]
        del self._ahead[:count]
        return data

    def _append(self, data: bytearray, count: int) -> int:
        """Read so many bytes into the end of ``data``; returns how many came."""
        start = len(data)
        data += self._ahead[:count]
        del self._ahead[:count]
        place, end = len(data), start + count
        data += bytes(end - place)
        with memoryview(data) as view:
            while place < end:
                got = self._rest(view[place:end])
                if not got:
                    break
                place += got
        del data[place:]
        return place - start

    def _some(self) -> bytes:
        """What is there of the next few bytes, after waiting for it; empty at the end."""
        try:
            client = self._prompt()
            return b"" if client is None else client.recv(_ALONG)
        except OSError:
            return b""  # closed, or silent for too long

    def _prompt(self) -> socket.socket | None:
        """The connection, about to acknowledge at once what is read next; Linux forgets it soon.

        A sender with Nagle's algorithm (storescu of dcmtk 3.6.7, for one) holds back what it
        writes next until what it wrote before is acknowledged, which is put off for 40 ms.
        """
        client: socket.socket | None = self.socket
        if client is not None:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return client

    def _rest(self, view: memoryview) -> int:
        """Read into all of the view at once; how many bytes came, 0 at the end."""
        try:
            client = self._prompt()
            return 0 if client is None else client.recv_into(view, 0, socket.MSG_WAITALL)
        except OSError:
            return 0
