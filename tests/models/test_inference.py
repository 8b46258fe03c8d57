"""Which runtime computes, that it is checked, and what happens when it fails."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hipscore import inference
from hipscore.domain import FloatArray
from hipscore.inference import BundleError, Choice, Precision, Provider, hardware, runtimes
from hipscore.keeping.networks import configured
from hipscore.settings import Settings

FAST_CPU = frozenset({"avx2", "avx512_vnni", "avx512_bf16"})
PLAIN_CPU = frozenset({"avx2"})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the shipped bundle that a test may change."""
    return Path(shutil.copytree(inference.shipped_bundle(), tmp_path / "bundle"))


def described(bundle: Path) -> dict[str, Any]:
    text: dict[str, Any] = json.loads((bundle / "bundle.json").read_text("utf-8"))
    return text


def declare(bundle: Path, **variants: dict[str, Any]) -> None:
    """Say that the bundle was evaluated in these precisions, and in no other but fp32."""
    text = described(bundle)
    text["variants"] = variants
    (bundle / "bundle.json").write_text(json.dumps(text), "utf-8")


def on(monkeypatch: pytest.MonkeyPatch, units: frozenset[str]) -> None:
    monkeypatch.setattr(hardware, "units", lambda: units)


def names(ways: tuple[Choice, ...]) -> list[str]:
    return [str(way) for way in ways]


@pytest.fixture
def crops() -> FloatArray:
    spec = inference.open_bundle().card.segmenter
    shape = (3, spec.context, spec.rows, spec.columns)
    return np.random.default_rng(3).random(shape, dtype=np.float32)


# --- the order ------------------------------------------------------------------------------


def test_a_precision_is_used_only_if_the_bundle_was_evaluated_in_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, FAST_CPU)
    declare(bundle)
    assert names(inference.choices(inference.open_bundle(bundle))) == ["openvino fp32", "cpu fp32"]
    declare(bundle, bf16={"tolerance": 0.05})
    found = names(inference.choices(inference.open_bundle(bundle)))
    assert found == ["openvino bf16", "openvino fp32", "cpu fp32"]


def test_a_processor_without_the_units_computes_in_fp32(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, PLAIN_CPU)
    declare(bundle, bf16={"tolerance": 0.05})
    found = names(inference.choices(inference.open_bundle(bundle)))
    assert found == ["openvino fp32", "cpu fp32"]


def test_the_operator_may_ask_for_one_way(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, PLAIN_CPU)
    declare(bundle, bf16={"tolerance": 0.05})
    opened = inference.open_bundle(bundle)
    assert names(inference.choices(opened, "cpu")) == ["cpu fp32"]
    assert names(inference.choices(opened, precision="bf16")) == ["openvino bf16"]
    assert names(inference.choices(opened, "openvino", "fp32")) == ["openvino fp32"]


def test_graphics_cards_come_first(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(bundle, fp16={"tolerance": 0.02})
    on(monkeypatch, PLAIN_CPU)
    found = names(inference.choices(inference.open_bundle(bundle), installed=False))
    assert found[:3] == ["tensorrt fp16", "tensorrt fp32", "cuda fp32"]


def test_what_is_not_installed_is_refused_in_one_line() -> None:
    with pytest.raises(BundleError, match=r"HIPSCORE_PROVIDER=cuda.*installed are openvino, cpu$"):
        inference.load_segmenter(provider="cuda")
    with pytest.raises(BundleError, match=r"HIPSCORE_PRECISION=fp16: the bundle was evaluated in"):
        inference.load_segmenter(precision="fp16", provider="cpu")


def test_the_settings_are_heard() -> None:
    settings = Settings(provider="cpu", precision="fp32", threads=1)
    assert configured(settings).engine.provider == "cpu"


def test_a_precision_of_a_later_version_is_left_alone(bundle: Path) -> None:
    declare(bundle, fp4={"tolerance": 0.05})
    assert set(inference.open_bundle(bundle).variants) == {Precision.FP32}


def test_graphs_that_are_not_listed_are_refused(bundle: Path) -> None:
    declare(bundle, int8={"files": {"segmenter": "other.onnx"}, "tolerance": 0.02})
    with pytest.raises(BundleError, match=r"does not list other\.onnx of int8"):
        inference.open_bundle(bundle)


# --- the check ------------------------------------------------------------------------------


def ways(segmenter: inference.BundleSegmenter) -> str:
    return f"{segmenter.engine.provider} {segmenter.engine.precision}"


def test_every_way_of_the_shipped_bundle_reproduces_its_reference() -> None:
    bundle = inference.open_bundle()
    for precision in bundle.variants:
        for choice in inference.choices(bundle, precision=precision.value):
            segmenter = inference.load_segmenter(
                threads=2, provider=choice.provider, precision=choice.precision
            )
            assert segmenter.deviation <= bundle.variants[precision].tolerance
            assert segmenter.engine.declined == ()
            assert ways(segmenter) == str(choice)


def test_a_way_that_deviates_is_declined_aloud(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on(monkeypatch, FAST_CPU)
    declare(bundle, bf16={"tolerance": 1e-9})
    with caplog.at_level(logging.ERROR):
        segmenter = inference.load_segmenter(bundle, 2)
    assert ways(segmenter) == "openvino fp32"
    (complaint,) = segmenter.engine.declined
    assert complaint.startswith("openvino bf16 is not usable: openvino bf16 deviates from")
    assert complaint in caplog.text


def test_a_bundle_that_nothing_reproduces_is_refused(bundle: Path) -> None:
    text = described(bundle)
    text["reference"]["tolerance"] = -1.0
    text["variants"] = {}
    (bundle / "bundle.json").write_text(json.dumps(text), "utf-8")
    with pytest.raises(BundleError, match=r"^no runtime is left.*openvino fp32.*cpu fp32"):
        inference.load_segmenter(bundle, 1)


# --- at work --------------------------------------------------------------------------------


class Lost:
    """A network whose device has gone."""

    device = "gone"

    def __call__(self, pictures: FloatArray) -> FloatArray:
        raise RuntimeError("CUDA failure 719: unspecified launch failure\nand more")


@pytest.fixture
def segmenter() -> inference.BundleSegmenter:
    return inference.load_segmenter(threads=2, precision="fp32")


def test_a_lost_device_costs_time_and_no_result(
    segmenter: inference.BundleSegmenter, crops: FloatArray, caplog: pytest.LogCaptureFixture
) -> None:
    before = segmenter.segment(crops)
    segmenter._running.segment = Lost()
    with caplog.at_level(logging.ERROR):
        after = segmenter.segment(crops)
    np.testing.assert_allclose(after, before, atol=2e-3)
    assert ways(segmenter) == "cpu fp32"
    (complaint,) = segmenter.engine.declined
    assert complaint == (
        "openvino fp32 failed at work: CUDA failure 719: unspecified launch failure"
    )
    assert complaint in caplog.text


def test_the_last_device_that_is_lost_is_an_error(crops: FloatArray) -> None:
    alone = inference.load_segmenter(threads=1, provider="cpu", precision="fp32")
    alone._running.segment = Lost()
    with pytest.raises(BundleError, match="no runtime is left"):
        alone.segment(crops)


class Overflowing:
    """A network of which one value is not finite."""

    device = "there"

    def __init__(self, inner: runtimes.Network, value: float) -> None:
        self._inner, self._value = inner, value

    def __call__(self, pictures: FloatArray) -> FloatArray:
        answer = self._inner(pictures)
        answer[-1, 0, 0, 0] = self._value
        return answer


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_an_answer_that_is_not_finite_is_a_failure_of_the_way(
    segmenter: inference.BundleSegmenter, crops: FloatArray, value: float
) -> None:
    before = segmenter.segment(crops)
    assert not segmenter.lost
    segmenter._running.segment = Overflowing(segmenter._running.segment, value)
    np.testing.assert_allclose(segmenter.segment(crops), before, atol=2e-3)
    assert ways(segmenter) == "cpu fp32"
    assert segmenter.engine.declined == ("openvino fp32 failed at work: the answer is not finite",)
    assert segmenter.lost  # another process begins with the faster way again


def test_a_picture_that_is_not_finite_costs_no_way(
    segmenter: inference.BundleSegmenter, crops: FloatArray
) -> None:
    segmenter._running.segment = Overflowing(segmenter._running.segment, np.nan)
    with pytest.raises(ValueError, match=r"is not finite \(segment\)"):
        segmenter.segment(np.full_like(crops, np.nan))
    assert ways(segmenter) == "openvino fp32"
    assert not segmenter.lost


@pytest.mark.parametrize("provider", ("openvino", "cpu"))
def test_what_was_not_filled_in_is_not_a_number(provider: str, crops: FloatArray) -> None:
    room = runtimes._room(crops, 3)
    assert room.shape == (len(crops), 3, *crops.shape[2:])
    assert np.isnan(room).all()
    network = inference.load_segmenter(threads=1, provider=provider, precision="fp32")
    assert np.isfinite(network.segment(crops)).all()


def test_openvino_raises_what_fails_in_a_request_and_computes_on(
    segmenter: inference.BundleSegmenter, crops: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = segmenter._running.segment
    before = network(crops)
    with monkeypatch.context() as patched:
        patched.setattr(runtimes, "_room", lambda pictures, _: np.empty((len(pictures), 1, 2, 3)))
        with pytest.raises(ValueError, match="broadcast"):
            network(crops)
    with pytest.raises(RuntimeError, match="shape"):  # before any request began
        network(crops[:, :, :8])
    np.testing.assert_array_equal(network(crops), before)


@pytest.mark.parametrize("provider", ("openvino", "cpu"))
def test_a_picture_means_the_same_in_any_company(provider: str, crops: FloatArray) -> None:
    """One by one, together, and on another number of threads: the same to the last bit."""
    two = inference.load_segmenter(threads=2, provider=provider, precision="fp32")
    together = two.segment(crops)
    alone = np.concatenate([two.segment(each[None]) for each in crops])
    tolerance = 0.0 if provider == "openvino" else 1e-5
    np.testing.assert_allclose(together, alone, rtol=0, atol=tolerance)
    assert two.segment(crops[:0]).shape == (0, 3, *crops.shape[2:])
    one = inference.load_segmenter(threads=1, provider=provider, precision="fp32")
    np.testing.assert_allclose(one.segment(crops), together, rtol=0, atol=tolerance)


def test_what_computed_is_named() -> None:
    engine = inference.load_segmenter(threads=1, provider=Provider.CPU, precision="fp32").engine
    assert engine.runtime.startswith("onnxruntime ")
    assert engine.device == hardware.processor()
    assert str(engine) == f"cpu fp32 ({engine.runtime}, {engine.device})"
    assert runtimes.openvino_version() is not None
