"""One process holds the networks on the GPU; the others, feeders, send it their pictures.

The feeders decode, score and build reports, each on a core; what several of them ask at the
same time is computed in one batch. Nothing waits for company: whatever is there when the
device becomes free goes together.

A feeder that gets no answer computes with networks of its own, says so in its engine
(``declined``), and comes back with the next series. A request is answered once, by the
connection that it came through and with its number; a connection on which anything went wrong
is closed: answers cannot be mixed up.

On the wire (a Unix socket): a line of JSON that says what follows, then the raw float32 of
the pictures ``(N, C, H, W)`` or of the answer. Nothing is unpickled.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import (
    Client,
    Connection,
    Listener,
    answer_challenge,
    deliver_challenge,
)

import numpy as np

from hipscore.domain import Engine, FloatArray, ModelCard, PlaneSpec, Segmenter
from hipscore.inference.bundle import BundleError
from hipscore.inference.networks import BundleSegmenter, EngineLost
from hipscore.inference.wire import RefusedError, limited, receive, send

log = logging.getLogger(__name__)

LOCALISE, SEGMENT = "localise", "segment"
#: pictures that go together at most, unless one request alone has more
TOGETHER = 64
#: pictures of one request at most: far more than any series has
MAX_PICTURES = 4096
#: longest silence of the shared engine before a feeder computes by itself, seconds
ANSWER_SECONDS = 60.0
#: the same while two processes make sure of each other
HANDSHAKE_SECONDS = 5.0
#: what the server ends with when its device was lost: another process may find it again
LOST = 75
_HEADER_BYTES = 4096
_LARGEST_BYTES = 2**28
_BACKLOG = 64

#: the other side has gone, is too slow, or is none of ours
_GONE = (OSError, EOFError, AuthenticationError, AssertionError)

Own = Callable[[], Segmenter]
Answer = tuple[FloatArray, Engine]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Request:
    what: str
    pictures: FloatArray
    answer: Future[Answer]


class Server:
    """Networks that several processes of the same user ask.

    Parameters
    ----------
    segmenter
        The networks.
    address
        Path of the Unix socket; it must not exist.
    key
        What feeders must know.
    """

    def __init__(self, segmenter: Segmenter, address: str, key: bytes) -> None:
        self._segmenter, self._card, self._key = segmenter, segmenter.card, key
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._unanswered = 0
        self._listener = Listener(address, family="AF_UNIX", backlog=_BACKLOG)
        os.chmod(address, 0o600)  # noqa: PTH101 - an address, not a path

    def run(self) -> int:
        """Compute in this thread until told to stop or the device is lost; the exit code."""
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        lost = False
        while not lost and (taken := self._take()):
            self._compute(taken)
            lost = isinstance(self._segmenter, BundleSegmenter) and self._segmenter.lost
        with self._changed:
            self._stopping = True
            # what is computed shall be sent; what waits is computed by those who asked
            while self._waiting:
                self._waiting.popleft().answer.set_exception(EngineLost("the engine ends"))
            self._changed.wait_for(lambda: self._unanswered == 0, timeout=HANDSHAKE_SECONDS)
        self._listener.close()
        return LOST if lost else 0

    def stop(self) -> None:
        """Let :meth:`run` return."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _take(self) -> list[_Request]:
        """What waits for the same network, in order, as soon as anything does."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return []
            taken: list[_Request] = []
            left: list[_Request] = []
            count = 0
            for each in self._waiting:
                fits = not taken or count + len(each.pictures) <= TOGETHER
                if fits and each.what == self._waiting[0].what:
                    taken.append(each)
                    count += len(each.pictures)
                else:
                    left.append(each)
            self._waiting = deque(left)
            return taken

    def _compute(self, taken: list[_Request]) -> None:
        network = getattr(self._segmenter, taken[0].what)
        try:
            answers = network(np.concatenate([each.pictures for each in taken]))
        except Exception as error:  # noqa: BLE001 - every runtime raises errors of its own
            if len(taken) > 1:  # one that cannot be computed takes no other with it
                for each in taken:
                    self._compute([each])
                return
            taken[0].answer.set_exception(error)
            return
        engine, at = self._segmenter.engine, 0
        for each in taken:
            each.answer.set_result((answers[at : at + len(each.pictures)], engine))
            at += len(each.pictures)

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:  # closed, or a feeder that died on the way in
                if self._stopping:
                    return
                time.sleep(0.1)  # too many open files, perhaps
                continue
            threading.Thread(
                target=self._attend, args=(connection,), name="feeder", daemon=True
            ).start()

    def _attend(self, connection: Connection) -> None:
        """Answer one feeder until it goes."""
        with closing(connection), suppress(*_GONE):
            limited(connection, HANDSHAKE_SECONDS)
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            while True:
                limited(connection, 0.0)  # between two series a feeder is silent for hours
                header = connection.recv_bytes(_HEADER_BYTES)
                limited(connection, ANSWER_SECONDS)
                with self._changed:
                    self._unanswered += 1
                try:
                    self._serve(connection, header)
                except RefusedError as error:
                    with suppress(OSError):  # what was sent is in the way of our answer
                        limited(connection, 0.1)
                        connection.recv_bytes(_LARGEST_BYTES)
                    _refuse(connection, error)
                    return
                finally:
                    with self._changed:
                        self._unanswered -= 1
                        self._changed.notify_all()

    def _serve(self, connection: Connection, header: bytes) -> None:
        number, what, shape = _asked(header, self._card)
        request = _Request(what=what, pictures=receive(connection, shape), answer=Future())
        with self._changed:
            if self._stopping:
                raise RefusedError("the engine ends")
            self._waiting.append(request)
            self._changed.notify_all()
        try:
            answer, engine = request.answer.result()
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RefusedError(first[:200]) from error
        said = {"number": number, "shape": answer.shape, "engine": asdict(engine)}
        connection.send_bytes(json.dumps(said).encode())
        send(connection, answer)


def _asked(header: bytes, card: ModelCard) -> tuple[int, str, tuple[int, ...]]:
    """The request's number, which network is asked, and the shape of what it is given.

    Raises
    ------
    RefusedError
        If the bundle of this card cannot answer that.
    """
    try:
        asked = json.loads(header)
        what, kind = str(asked["what"]), str(asked["dtype"])
        shape = tuple(int(each) for each in asked["shape"])
        number, bundle = int(asked["number"]), str(asked["bundle"])
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"not a request ({type(error).__name__})") from error
    if what not in {LOCALISE, SEGMENT}:
        raise RefusedError(f"no network is called {what[:40]!r}")
    if bundle != card.sha256:
        raise RefusedError(f"it has another model bundle than {card.id} {card.version}")
    wanted = _picture(card.localiser if what == LOCALISE else card.segmenter)
    if kind != "<f4" or shape[1:] != wanted or not 0 <= shape[0] <= MAX_PICTURES:
        raise RefusedError(f"{what} takes (N, {wanted}) of <f4, not {shape} of {kind[:20]}")
    return number, what, shape


def _refuse(connection: Connection, error: RefusedError) -> None:
    log.error("a request is not answered: %s", error)
    connection.send_bytes(json.dumps({"error": str(error)}).encode())


def _picture(spec: PlaneSpec) -> tuple[int, int, int]:
    return (spec.context, spec.rows, spec.columns)


class SharedSegmenter:
    """The networks of another process, and of this one while that does not answer.

    Parameters
    ----------
    address, key
        Of the :class:`Server`.
    card
        The bundle that it must have.
    own
        Makes networks in this process. None: without the shared engine nothing is computed,
        which the operator decided by naming a GPU provider.
    limit
        Seconds until an answer is given up.
    """

    def __init__(
        self,
        address: str,
        key: bytes,
        card: ModelCard,
        own: Own | None,
        *,
        limit: float = ANSWER_SECONDS,
    ) -> None:
        self._address, self._key, self._card = address, key, card
        self._make_own, self._limit = own, limit
        self._own: Segmenter | None = None
        self._connection: Connection | None = None
        self._engine: Engine | None = None
        self._declined: tuple[str, ...] = ()
        self._number = 0

    @property
    def card(self) -> ModelCard:
        return self._card

    @property
    def engine(self) -> Engine:
        """What computed last in this series: the server's engine, or ours and why not the server's.

        Raises
        ------
        EngineLost
            If nothing was computed in this series, and nothing can be.
        """
        if self._engine is None:  # nobody asked for anything yet
            self.localise(np.empty((0, *_picture(self._card.localiser)), dtype=np.float32))
        if self._engine is None:
            raise EngineLost("the shared engine gave no answer")
        return self._engine

    def localise(self, planes: FloatArray) -> FloatArray:
        """Head probability ``(N, 2, H, W)`` of planes ``(N, C, H, W)``.

        A series begins with this: the time to return to a shared engine that is back.
        """
        self._engine = None
        self._connect()
        return self._compute(LOCALISE, planes)

    def segment(self, crops: FloatArray) -> FloatArray:
        """Structure probability ``(N, K, H, W)`` of crops ``(N, C, H, W)``."""
        if self._engine is None:
            self._connect()
        return self._compute(SEGMENT, crops)

    def _compute(self, what: str, pictures: FloatArray) -> FloatArray:
        if self._connection is not None:
            try:
                return self._ask(self._connection, what, pictures)
            except (OSError, EOFError, RefusedError, ValueError, KeyError, TypeError) as error:
                self._give_up(error)
            except BaseException:  # an answer may still come: nobody else shall take it for theirs
                self._hang_up()
                raise
        own = self._networks()
        answer: FloatArray = getattr(own, what)(pictures)
        engine = own.engine
        self._engine = replace(engine, declined=(*self._declined, *engine.declined))
        return answer

    def _networks(self) -> Segmenter:
        if self._make_own is None:
            raise EngineLost("; ".join(self._declined))
        if self._own is None:
            try:
                self._own = self._make_own()
            except BundleError as error:
                raise EngineLost("; ".join((*self._declined, str(error)))) from error
        return self._own

    def _connect(self) -> None:
        if self._connection is not None:
            return
        try:
            connection = Client(self._address, family="AF_UNIX")
        except OSError as error:
            self._give_up(error)
            return
        try:
            limited(connection, min(HANDSHAKE_SECONDS, self._limit))
            answer_challenge(connection, self._key)
            deliver_challenge(connection, self._key)
            limited(connection, self._limit)
        except _GONE as error:
            connection.close()
            self._give_up(error)
            return
        self._connection = connection

    def _ask(self, connection: Connection, what: str, pictures: FloatArray) -> FloatArray:
        shape = pictures.shape
        self._number += 1
        asked = {"number": self._number, "what": what, "dtype": "<f4", "shape": shape}
        connection.send_bytes(json.dumps(asked | {"bundle": self._card.sha256}).encode())
        send(connection, pictures)
        said = json.loads(connection.recv_bytes(_HEADER_BYTES))
        if "error" in said:
            raise RefusedError(str(said["error"]))
        answered = tuple(int(each) for each in said["shape"])
        if said["number"] != self._number:
            raise RefusedError(f"request {self._number} is answered as {said['number']}")
        if answered[:1] != shape[:1] or answered[2:] != shape[2:]:
            raise RefusedError(f"{answered} answers {shape}")
        engine = Engine(**{**said["engine"], "declined": tuple(said["engine"]["declined"])})
        answer = receive(connection, answered)
        self._engine, self._declined = engine, ()
        return answer

    def _give_up(self, error: Exception) -> None:
        """Leave the server for this series."""
        self._hang_up()
        why = str(error) or type(error).__name__
        if isinstance(error, BlockingIOError):
            why = f"no answer within {self._limit:g} s"
        complaint = f"the shared engine failed: {why}"
        self._declined = (complaint,)
        then = "this series waits for it" if self._make_own is None else "computed here instead"
        log.error("%s; %s", complaint, then)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
