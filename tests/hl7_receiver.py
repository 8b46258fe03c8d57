"""An HL7 receiver on the server of the ``hl7`` library, which answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import hl7
from hl7.mllp import HL7StreamReader, HL7StreamWriter, start_hl7_server

from hipscore.addresses import Mllp
from tests import servers

#: what to answer to a message: the block, or None for silence
Answer = Callable[[hl7.Message], bytes | None]


def acknowledge(code: str = "AA", *, error: str = "", control_id: str | None = None) -> Answer:
    """An acknowledgment with this MSA-1, ERR-3 and (else that of the message) MSA-2."""

    def answer(message: hl7.Message) -> bytes:
        named = control_id if control_id is not None else str(message.segment("MSH")(10))
        lines = [
            "MSH|^~\\&|RIS|HOSPITAL|HIPSCORE||20260314093001||ACK^R01^ACK|A1|P|2.5.1",
            f"MSA|{code}|{named}|text that may quote Secret^Patient",
        ]
        if error:
            lines.append(f"ERR||PID^1|{error}^Whatever^HL70357|E||||Secret^Patient")
        return ("\r".join(lines) + "\r").encode()

    return answer


def silent(message: hl7.Message) -> None:
    """Give no answer at all."""
    del message


@dataclass(slots=True)
class Receiver:
    """A receiver: every message it got, and how it answers the next ones."""

    port: int
    answer: Answer = field(default_factory=acknowledge)
    #: answers to the first messages, before ``answer``
    first: list[Answer] = field(default_factory=list)
    got: list[hl7.Message] = field(default_factory=list)

    @property
    def address(self) -> str:
        """As in HIPSCORE_DESTINATIONS."""
        return str(Mllp(host=servers.LOOPBACK, port=self.port))

    def control_ids(self) -> list[str]:
        """MSH-10 of every message, in order."""
        return [str(each.segment("MSH")(10)) for each in self.got]

    async def serve(self, reader: HL7StreamReader, writer: HL7StreamWriter) -> None:
        """Serve one connection."""
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    message = await reader.readmessage()
                    self.got.append(message)
                    block = (self.first.pop(0) if self.first else self.answer)(message)
                    if block is None:
                        continue
                    writer.writeblock(block)
                    await writer.drain()
        finally:
            writer.transport.abort()


@contextlib.contextmanager
def receiving(port: int | None = None) -> Iterator[Receiver]:
    """Run a receiver in a thread of its own."""
    receiver = Receiver(port=port or servers.free_port())
    up, loop = threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        server = await start_hl7_server(
            receiver.serve, servers.LOOPBACK, receiver.port, encoding="utf-8"
        )
        up.set()
        await over.wait()
        server.close()
        others = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.01)  # what was aborted is closed by the loop, a moment later

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="receiver")
    thread.start()
    try:
        assert up.wait(10)
        yield receiver
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()
        assert not thread.is_alive()
