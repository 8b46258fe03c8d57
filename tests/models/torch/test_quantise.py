"""int8 graphs: the same answers within steps of int8, from training series alone, reproducible."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from hipscore import hips, phantom
from hipscore.domain import Channel, FloatArray
from hipscore.inference import open_bundle, shipped_bundle
from hiptrain import metrics, precision, quantise, rearrange
from hiptrain.cli import main
from hiptrain.specs import MARGIN_MM, SEGMENTER
from tests.models.torch.factories import write_set

BUNDLE = shipped_bundle()


def crops(seed: int) -> FloatArray:
    made = phantom.synthesise(
        seed=seed, rows=256, slices=20, supersampling=1, burden=phantom.Burden.SEVERE
    )
    crop = hips.frame(made.volume.grid, made.hips[0], SEGMENTER, MARGIN_MM)
    return hips.crops(made.volume, crop)[2:10]


def answers(model: onnx.ModelProto, pictures: FloatArray) -> FloatArray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: FloatArray = session.run(None, {"pictures": pictures})[0]
    return result


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(BUNDLE / "model.onnx")


@pytest.fixture(scope="module")
def int8(model: onnx.ModelProto) -> onnx.ModelProto:
    return quantise.quantise(model, crops(1))


@pytest.fixture(scope="module")
def unseen() -> FloatArray:
    return crops(2)


def test_the_rearranged_graph_answers_like_the_network(
    model: onnx.ModelProto, unseen: FloatArray
) -> None:
    anew = rearrange.equalised(rearrange.folded(model), crops(1))
    np.testing.assert_allclose(answers(anew, unseen), answers(model, unseen), atol=1e-4)
    before, after = (
        rearrange.weights(each)["network.body.conv_0.conv_1.conv.weight"] for each in (model, anew)
    )
    assert not np.allclose(before, after), "no channel was scaled"
    assert "Pad" not in {node.op_type for node in anew.graph.node}


def test_a_pad_that_widens_is_not_folded_away(model: onnx.ModelProto) -> None:
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    pad = next(node for node in wide.graph.node if node.op_type == "Pad")
    rearrange.set_weights(wide, pad.input[1], np.array([0, 0, 0, 0, 0, 0, 1, 0], dtype=np.int64))
    with pytest.raises(ValueError, match=r"pads by \[0, 0, 0, 0, 0, 0, 1, 0\]"):
        rearrange.folded(wide)


def test_a_network_of_other_layers_is_refused() -> None:
    localiser = onnx.load(BUNDLE / "localiser.onnx")
    with pytest.raises(ValueError, match=r"a network with Expand, .* cannot be quantised here"):
        quantise.quantise(localiser, np.zeros((1, 3, 224, 224), dtype=np.float32))


def test_every_convolution_takes_and_multiplies_8_bit_numbers(int8: onnx.ModelProto) -> None:
    made_by, constants = rearrange.producers(int8), rearrange.weights(int8)
    convolutions = [node for node in int8.graph.node if "Conv" in node.op_type]
    assert len(convolutions) == 23
    for node in convolutions:
        tensor, kernel, bias = (made_by[name] for name in node.input)
        assert {each.op_type for each in (tensor, kernel, bias)} == {"DequantizeLinear"}
        assert constants[kernel.input[0]].dtype == np.int8
        assert constants[bias.input[0]].dtype == np.int32
        assert constants[tensor.input[2]].dtype == np.uint8


def test_int8_outlines_what_fp32_outlines(
    model: onnx.ModelProto, int8: onnx.ModelProto, unseen: FloatArray
) -> None:
    thresholds = np.reshape(open_bundle().card.thresholds, (1, 3, 1, 1))
    exact, own = (answers(each, unseen) > thresholds for each in (model, int8))
    for channel in Channel:
        assert exact[:, channel].sum() > 500
        # 0.99 with exact 8-bit products; processors without VNNI may saturate
        assert metrics.dice(exact[:, channel], own[:, channel]) > 0.95


def test_both_runtimes_answer_alike(
    int8: onnx.ModelProto, unseen: FloatArray, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    onnx.save(int8, path)
    one, other = (precision.opened(path, each)(unseen) for each in ("onnxruntime", "openvino"))
    # halves are rounded differently: here and there a pixel is a step off
    assert np.abs(one - other).mean() < 2e-4


def test_the_bias_takes_back_what_rounded_weights_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """One convolution whose small weights are all rounded up by the same part of a step."""
    kernel = np.full((1, 4, 1, 1), 0.0049, dtype=np.float32)
    kernel[0, 0] = 1.0
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pictures", "k", "b"], ["c"], name="conv"),
            helper.make_node("Sigmoid", ["c"], ["probability"]),
        ],
        "one",
        [helper.make_tensor_value_info("pictures", 1, ["batch", 4, 8, 8])],
        [helper.make_tensor_value_info("probability", 1, ["batch", 1, 8, 8])],
        [
            numpy_helper.from_array(kernel, "k"),
            numpy_helper.from_array(np.zeros(1, dtype=np.float32), "b"),
        ],
    )
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    given = np.random.default_rng(0).random((16, 4, 8, 8), dtype=np.float32)
    exact = answers(plain, given)
    corrected = (answers(quantise.quantise(plain, given), given) - exact).mean()
    monkeypatch.setattr(quantise, "_correct", lambda *_: None)
    rounded = (answers(quantise.quantise(plain, given), given) - exact).mean()
    # three weights are 0.003 too large at a mean input of 0.5, and the sigmoid's slope is 0.23
    assert rounded == pytest.approx(0.001, rel=0.2)
    assert abs(corrected) < 0.2 * rounded


def data(folder: Path, *patients: str) -> Path:
    return write_set(folder, dict.fromkeys(patients, "semireal"))


def test_calibration_takes_the_series_that_trained_the_bundle_and_no_other(tmp_path: Path) -> None:
    both = data(tmp_path / "both", "series_01", "elsewhere")
    alone = data(tmp_path / "alone", "series_01")
    drawn = [quantise.calibration(BUNDLE, [folder], pictures=3, seed=7) for folder in (both, alone)]
    assert drawn[0].shape == (3, SEGMENTER.context, 160, 128)
    np.testing.assert_array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize(
    ("patients", "message"),
    (
        (("series_01", "series_03", "series_09"), "the data hold series_03, series_09, which"),
        (("elsewhere",), "no series that trained this bundle"),
    ),
)
def test_series_kept_from_training_do_not_calibrate(
    patients: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        quantise.calibration(BUNDLE, [data(tmp_path, *patients)], pictures=8, seed=0)


def test_the_command_adds_the_variant_and_makes_the_same_bytes_again(tmp_path: Path) -> None:
    source = str(data(tmp_path / "data", "series_01", "series_02"))
    outs = [tmp_path / "a", tmp_path / "b"]
    for out in outs:
        arguments = ["quantise", str(BUNDLE), "--data", source, "--out", str(out)]
        result = CliRunner().invoke(main, [*arguments, "--pictures", "8"])
        assert result.exit_code == 0, result.output
        assert result.output.startswith("calibrated on 8 crops")
    for name in ("model.int8.onnx", "bundle.json"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
    open_bundle(outs[0])  # every file has its digest
    described = json.loads((outs[0] / "bundle.json").read_text())
    assert described["format"] == 1
    assert described["variants"]["int8"] == {
        "files": {"segmenter": "model.int8.onnx"},
        "tolerance": quantise.TOLERANCE,
    }
    assert described["training"]["int8"]["pictures"] == 8
    with np.load(outs[0] / "reference.npz") as arrays:
        given, own = arrays["segmenter_input"], arrays["int8_segmenter_output"]
        again = precision.opened(outs[0] / "model.int8.onnx", "onnxruntime")(
            given.astype(np.float32)
        )
        assert np.abs(again - own).max() < 1e-3
        assert not np.array_equal(own, arrays["segmenter_output"])


def test_a_bundle_is_not_written_over_itself(tmp_path: Path) -> None:
    source = str(data(tmp_path / "data", "series_01"))
    arguments = ["quantise", str(BUNDLE), "--data", source, "--out", str(BUNDLE)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "choose another folder" in result.output
