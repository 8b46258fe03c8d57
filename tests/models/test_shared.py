"""One process computes for several: everybody gets their own answer, whatever happens to it."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path

import numpy as np
import pytest

from hipscore import inference
from hipscore.domain import Engine, FloatArray, ModelCard, Segmenter, Transient
from hipscore.inference import (
    BundleError,
    BundleSegmenter,
    Choice,
    Precision,
    Provider,
    gpu,
    shared,
    wire,
)
from hipscore.inference.networks import EngineLost, Room
from hipscore.keeping import sharing
from hipscore.settings import Settings

KEY = b"known to the feeders"
FP32 = Choice(provider=Provider.OPENVINO, precision=Precision.FP32)
BUNDLE = inference.open_bundle()


def networks() -> BundleSegmenter:
    return BundleSegmenter(BUNDLE, [FP32], Room(threads=1))


@pytest.fixture(scope="module")
def alone() -> BundleSegmenter:
    """The networks, asked by nobody else."""
    return networks()


def crops(seed: int, count: int = 2) -> FloatArray:
    spec = BUNDLE.card.segmenter
    shape = (count, spec.context, spec.rows, spec.columns)
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def planes(seed: int, count: int = 1) -> FloatArray:
    spec = BUNDLE.card.localiser
    shape = (count, spec.context, spec.rows, spec.columns)
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


class Slow:
    """The networks with a gate before them, and a note of how many pictures went together."""

    def __init__(self, inner: BundleSegmenter) -> None:
        self._inner = inner
        self.gate = threading.Event()
        self.together: list[int] = []

    @property
    def card(self) -> ModelCard:
        return self._inner.card

    @property
    def engine(self) -> Engine:
        return self._inner.engine

    def localise(self, pictures: FloatArray) -> FloatArray:
        return self._inner.localise(pictures)

    def segment(self, pictures: FloatArray) -> FloatArray:
        self.gate.wait()
        self.together.append(len(pictures))
        if np.isnan(pictures).any():
            raise RuntimeError("not a picture")
        return self._inner.segment(pictures)


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("e") / "engine")


@pytest.fixture(scope="module")
def served() -> BundleSegmenter:
    return networks()


@pytest.fixture
def slow(served: BundleSegmenter, address: str) -> Iterator[Slow]:
    """A server in this process."""
    networks = Slow(served)
    server = shared.Server(networks, address, KEY)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield networks
    networks.gate.set()
    server.stop()
    thread.join(10)
    assert not thread.is_alive()


def feeder(address: str, own: shared.Own | None = None, limit: float = 20.0) -> Segmenter:
    return shared.SharedSegmenter(address, KEY, BUNDLE.card, own, limit=limit)


# --- together -------------------------------------------------------------------------------


def test_each_feeder_gets_its_own_answer(slow: Slow, alone: BundleSegmenter, address: str) -> None:
    """To the last bit what it would be alone, although all went in one batch."""
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(feeder(address).segment, crops(0, 1))
        while not slow.together and not _waits(slow):
            time.sleep(0.01)
        others = {n: pool.submit(feeder(address).segment, crops(n, n)) for n in (1, 2, 3)}
        time.sleep(0.5)
        slow.gate.set()
        np.testing.assert_array_equal(first.result(), alone.segment(crops(0, 1)))
        for count, answer in others.items():
            np.testing.assert_array_equal(answer.result(), alone.segment(crops(count, count)))
    assert slow.together == [1, 6]


def _waits(slow: Slow) -> bool:
    return any(thread.name == "feeder" for thread in threading.enumerate())


def test_the_server_names_the_engine(slow: Slow, alone: BundleSegmenter, address: str) -> None:
    asked = feeder(address)
    assert asked.engine == alone.engine
    assert asked.card == BUNDLE.card
    np.testing.assert_array_equal(asked.localise(planes(1)), alone.localise(planes(1)))
    asked.localise(planes(1))[:] = 0.0  # an answer may be written to, like any other


def test_one_bad_request_takes_no_other_with_it(
    slow: Slow, alone: BundleSegmenter, address: str
) -> None:
    with ThreadPoolExecutor(3) as pool:
        blocking = pool.submit(feeder(address).segment, crops(0, 1))
        time.sleep(0.3)
        bad = pool.submit(feeder(address).segment, np.full_like(crops(1), np.nan))
        good = pool.submit(feeder(address).segment, crops(2))
        time.sleep(0.3)
        slow.gate.set()
        blocking.result()
        np.testing.assert_array_equal(good.result(), alone.segment(crops(2)))
        with pytest.raises(EngineLost, match="not a picture"):
            bad.result()


# --- refused --------------------------------------------------------------------------------


def ask(address: str, header: bytes, payload: bytes = b"", key: bytes = KEY) -> str:
    """What the server says to these bytes."""
    with Client(address, family="AF_UNIX") as connection:
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
        connection.send_bytes(header)
        connection.send_bytes(payload)
        said: str = json.loads(connection.recv_bytes())["error"]
        return said


def header(**changed: object) -> bytes:
    spec = BUNDLE.card.segmenter
    right = {
        "number": 1,
        "what": "segment",
        "dtype": "<f4",
        "shape": [1, spec.context, spec.rows, spec.columns],
        "bundle": BUNDLE.card.sha256,
    }
    return json.dumps(right | changed).encode()


def test_wrong_bytes_are_refused(slow: Slow, alone: BundleSegmenter, address: str) -> None:
    slow.gate.set()
    assert "not a request" in ask(address, b"\x80\x04pickle")
    assert "not a request" in ask(address, header(number=None))
    assert "no network" in ask(address, header(what="engine"))
    assert "another model bundle" in ask(address, header(bundle="0" * 64))
    assert "segment takes" in ask(address, header(shape=[1, 5, 8, 8]))
    assert "segment takes" in ask(address, header(shape=[10**9, 5, 160, 128]))
    assert "segment takes" in ask(address, header(dtype="<f8"))
    assert "3 bytes came" in ask(address, header(), b"abc")
    with pytest.raises(multiprocessing.AuthenticationError):
        ask(address, header(), key=b"guessed")
    np.testing.assert_array_equal(feeder(address).segment(crops(1)), alone.segment(crops(1)))


def test_only_our_own_user_reaches_it(slow: Slow, address: str) -> None:
    assert Path(address).stat().st_mode & 0o077 == 0


# --- when something dies --------------------------------------------------------------------


def test_a_silent_server_is_given_up(
    slow: Slow, alone: BundleSegmenter, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = feeder(address, own=lambda: alone, limit=0.3)
    with caplog.at_level(logging.ERROR):
        answer = asked.segment(crops(1))
    np.testing.assert_array_equal(answer, alone.segment(crops(1)))
    assert asked.engine.declined == ("the shared engine failed: no answer within 0.3 s",)
    assert asked.engine.declined[0] in caplog.text
    slow.gate.set()
    asked.localise(planes(1))  # the next series
    assert not asked.engine.declined


def test_a_feeder_that_may_not_compute_itself_lets_the_series_wait(address: str) -> None:
    """HIPSCORE_PROVIDER names a GPU: the job is tried again, and does not fail for good."""
    with pytest.raises(Transient, match="the shared engine failed: "):
        feeder(address).localise(planes(1))


def test_no_answer_belongs_to_another_request(
    slow: Slow, alone: BundleSegmenter, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one with another number, nor one that was asked for and not waited for."""
    asked = feeder(address, own=lambda: alone)
    slow.gate.set()
    asked.localise(planes(1))
    with monkeypatch.context() as patched:
        patched.setattr(shared, "receive", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            asked.segment(crops(1))
    np.testing.assert_array_equal(asked.segment(crops(2)), alone.segment(crops(2)))
    real = shared._asked
    monkeypatch.setattr(shared, "_asked", lambda *given: (7000, *real(*given)[1:]))
    asked.localise(planes(1))
    assert "is answered as 7000" in asked.engine.declined[0]


def _interrupted(connection: Connection, shape: tuple[int, ...]) -> FloatArray:
    """Read an array; the feeder, which is not the server's thread, is interrupted before."""
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
    return wire.receive(connection, shape)


def test_a_feeder_whose_own_networks_fail_lets_the_series_wait(address: str) -> None:
    def refused() -> Segmenter:
        raise BundleError("no memory")

    asked = feeder(address, own=refused)
    with pytest.raises(Transient, match=r"the shared engine failed: .*; no memory"):
        asked.localise(planes(1))


def test_an_engine_of_the_series_before_is_not_shown(slow: Slow, address: str) -> None:
    asked = feeder(address)
    slow.gate.set()
    asked.localise(planes(1))
    with pytest.raises(EngineLost, match="takes"):
        asked.localise(planes(1)[:, :, :8])
    with pytest.raises(EngineLost):
        feeder(address + "-gone").engine.provider  # noqa: B018 - nothing computed, nothing can
    assert asked._engine is None  # type: ignore[attr-defined]


def test_a_worker_whose_named_gpu_does_not_start_takes_no_job() -> None:
    settings = Settings(engine="shared", provider="cuda")
    with (
        pytest.raises(BundleError, match="does not start with HIPSCORE_PROVIDER=cuda"),
        sharing.shared_engine(settings, BUNDLE, concurrency=2),
    ):
        pytest.fail("it began")
    assert _engine_process() is None


def test_a_worker_whose_named_gpu_does_not_come_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    monkeypatch.setattr(sharing, "PAUSES_S", (0.01, 0.01))
    tried: list[bool] = []
    for alone, count in ((True, sharing.FAILURES), (False, 3 * sharing.FAILURES)):
        keeper = sharing._Keeper(None, "/nowhere", KEY, alone=alone)  # type: ignore[arg-type]
        monkeypatch.setattr(keeper, "_once", lambda: tried.append(False))  # and so not ready
        tried.clear()
        ended.clear()
        keeper._thread.start()
        _until(lambda count=count: len(tried) >= count)  # type: ignore[misc]
        keeper.stop()
        assert ended.is_set() is alone
    signal.signal(signal.SIGTERM, before)


def test_a_feeder_that_dies_disturbs_nobody(
    slow: Slow, alone: BundleSegmenter, address: str
) -> None:
    program = f"""
import numpy as np
from hipscore.inference import open_bundle, shared
card = open_bundle().card
s = card.segmenter
shared.SharedSegmenter({address!r}, {KEY!r}, card, None).segment(
    np.zeros((2, s.context, s.rows, s.columns), np.float32))
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    while not _waits(slow):
        time.sleep(0.05)
    time.sleep(0.3)
    process.kill()
    process.wait()
    slow.gate.set()
    np.testing.assert_array_equal(feeder(address).segment(crops(1)), alone.segment(crops(1)))


def test_an_engine_killed_at_work_costs_no_answer(alone: BundleSegmenter) -> None:
    """Three feeders ask on and on, the engine is killed; then it serves them again."""
    settings = Settings(engine="shared", provider="openvino", precision="fp32", threads=1)
    wanted = {n: alone.segment(crops(n)) for n in (1, 2, 3)}
    stop = threading.Event()

    def work(number: int, make: Callable[[], Segmenter]) -> tuple[int, Segmenter]:
        asked, series = make(), 0
        while not stop.is_set():
            asked.localise(planes(number))
            np.testing.assert_array_equal(asked.segment(crops(number)), wanted[number])
            series += 1
        return series, asked

    with (
        sharing.shared_engine(settings, BUNDLE, concurrency=3) as make,
        ThreadPoolExecutor(3) as pool,
    ):
        working = [pool.submit(work, number, make) for number in wanted]
        try:
            time.sleep(0.5)
            first = _engine_process()
            assert first is not None
            os.kill(first, signal.SIGKILL)
            _until(lambda: _engine_process() not in {None, first})
            _until(lambda: feeder_of(make).engine.declined == ())
        finally:
            stop.set()
        for done in working:
            series, asked = done.result()
            assert series > 0
            asked.localise(planes(1))
            assert asked.engine.declined == ()
    assert _engine_process() is None


def feeder_of(make: Callable[[], Segmenter]) -> Segmenter:
    made = make()
    made.localise(planes(1, 0))
    return made


def _engine_process() -> int | None:
    found = [each.pid for each in multiprocessing.active_children() if each.name == "engine"]
    return found[0] if found else None


def _until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.1)


# --- who shares, and what follows a lost GPU --------------------------------------------------


def test_a_worker_shares_its_engine_where_it_is_told_to() -> None:
    assert sharing.wanted(Settings(engine="shared"), BUNDLE, 1)
    assert not sharing.wanted(Settings(engine="own"), BUNDLE, 4)
    assert not sharing.wanted(Settings(), BUNDLE, 1)


def test_several_processes_share_a_gpu_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not sharing.wanted(Settings(), BUNDLE, 4)
    monkeypatch.setattr(gpu, "available", lambda provider: provider == "cuda")
    assert sharing.wanted(Settings(), BUNDLE, 4)
    assert not sharing.wanted(Settings(provider="cpu"), BUNDLE, 4)


class Lost:
    device = "gone"

    def __call__(self, pictures: FloatArray) -> FloatArray:
        raise RuntimeError("CUDA failure 719: unspecified launch failure")


def lose_the_gpu(segmenter: BundleSegmenter) -> None:
    segmenter._choice = Choice(provider=Provider.CUDA, precision=Precision.FP32)
    segmenter._running.segment = Lost()


def test_a_server_that_lost_its_gpu_answers_and_ends(alone: BundleSegmenter, address: str) -> None:
    segmenter = BundleSegmenter(BUNDLE, [FP32, FP32], Room(threads=1))
    lose_the_gpu(segmenter)
    server = shared.Server(segmenter, address, KEY)
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(server.run)
        asked = feeder(address)
        np.testing.assert_array_equal(asked.segment(crops(1)), alone.segment(crops(1)))
        assert code.result(10) == shared.LOST
    assert asked.engine.declined[0].startswith("cuda fp32 failed at work: CUDA failure 719")


def test_a_worker_that_lost_its_gpu_is_ended_by_its_child() -> None:
    child = """
import os
from hipscore.inference import BundleSegmenter
from hipscore.worker.process import renew
segmenter = BundleSegmenter.__new__(BundleSegmenter)
segmenter._lost = False
assert not renew(segmenter, os.getppid())
segmenter._lost = True
assert not renew(segmenter, 1 << 22)  # a worker that is not our parent is left alone
assert renew(segmenter, os.getppid())
"""
    worker = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
subprocess.run([sys.executable, "-c", {child!r}], check=True)
"""
    ended = subprocess.run([sys.executable, "-c", worker], check=False, timeout=60)
    assert ended.returncode == 7


def test_a_named_gpu_that_is_lost_lets_the_job_wait() -> None:
    segmenter = networks()
    lose_the_gpu(segmenter)
    with pytest.raises(Transient, match="no runtime is left"):
        segmenter.segment(crops(1))
    assert segmenter.lost


# --- the code for the GPU, as far as a processor can run it ------------------------------------


def test_bound_memory_answers_what_a_plain_session_answers() -> None:
    path = BUNDLE.variants[Precision.FP32].segmenter
    bound = gpu.BoundNetwork(path, [("CPUExecutionProvider", {})], device="cpu", batch=2)
    pictures = crops(1, 3)
    plain = inference.load_segmenter(threads=1, provider="cpu", precision="fp32")
    np.testing.assert_allclose(bound(pictures), plain.segment(pictures), atol=1e-5)
    np.testing.assert_array_equal(bound(pictures)[2:], bound(pictures[2:]))
    assert bound(pictures[:0]).shape == plain.segment(pictures[:0]).shape


def test_a_built_engine_belongs_to_one_graph_and_precision(tmp_path: Path) -> None:
    variant = BUNDLE.variants[Precision.FP32]
    given = [
        gpu.tensorrt_options(path, precision, tmp_path)
        for path in (variant.segmenter, variant.localiser)
        for precision in (Precision.FP32, Precision.FP16)
    ]
    assert len({each["trt_engine_cache_path"] for each in given}) == 4
    assert [each["trt_fp16_enable"] for each in given] == [False, True] * 2
    spec = BUNDLE.card.segmenter
    size = f"{spec.context}x{spec.rows}x{spec.columns}"
    assert given[0]["trt_profile_opt_shapes"].endswith(f":32x{size}")
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_without_a_driver_there_is_no_gpu(capfd: pytest.CaptureFixture[str]) -> None:
    assert not gpu.available("cuda")
    assert not gpu.available("tensorrt")
    assert gpu.device_name() == "unknown GPU"
    assert capfd.readouterr() == ("", "")
