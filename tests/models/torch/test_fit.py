"""The training loop learns, resumes, averages, stops; what it exports answers like the network."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner, Result

from hipscore.inference import open_bundle
from hiptrain import checkpoint, export, fit
from hiptrain.cli.fit import fit as command
from hiptrain.losses import dice, dice_counts, segmentation_loss
from hiptrain.networks import (
    LOCALISER_DESIGN,
    SEGMENTER_DESIGN,
    Design,
    Probability,
    build,
    restore_network,
)
from tests.models.torch.factories import discs, write_set

SMALL = Design(kind="localiser", inputs=3, outputs=3, width=8, depth=2)


class Interrupted(Exception):
    pass


def recipe(**changes: Any) -> fit.Recipe:
    base = fit.Recipe(task="segmenter", steps_per_epoch=8, batch=8, epochs=2, threads=1, rate=5e-3)
    return dataclasses.replace(base, **{"device": "cpu", **changes})


def load(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "segmenter.log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_batch_is_learnt_by_heart() -> None:
    pictures, truth = fit.tensors(discs(4, size=(32, 32)), slice(0, 4))
    state = fit.begin(recipe(rate=1e-2), SMALL)
    state.network.train()
    for _ in range(120):
        loss = segmentation_loss(state.network(pictures), truth)
        state.optimiser.zero_grad()
        loss.backward()
        state.optimiser.step()
    figures = dice(dice_counts(state.network(pictures), truth))
    assert figures[0] > 0.97
    assert figures[1] > 0.93


def test_training_improves_on_unseen_patients(tmp_path: Path) -> None:
    unseen = discs(12, 1, "b", size=(32, 32))
    best = fit.fit(
        recipe(epochs=5, steps_per_epoch=40, rate=1e-2, warm_up=10),
        discs(48, size=(32, 32)),
        unseen,
        tmp_path,
        design=SMALL,
    )
    saved = load(best)
    assert saved["best"] > 0.6
    found = rows(tmp_path)
    assert [row["epoch"] for row in found] == ["1", "2", "3", "4", "5"]
    assert float(found[-1]["loss"]) < float(found[0]["loss"])
    # the figure in the checkpoint is that of the weights in the checkpoint
    again = fit.validate(restore_network(saved), unseen, recipe())
    assert fit.figure_of(again[1]) == pytest.approx(saved["best"], abs=1e-6)


@pytest.mark.parametrize("final", (False, True))
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, final: bool) -> None:
    """Two epochs, then two more from the checkpoint, are four: same weights, one log."""
    training, unseen = discs(16), discs(4, 1, "b")
    plan = recipe(epochs=4, steps_per_epoch=4, final=final)

    def run(name: str, tell: Any = lambda _: None) -> None:
        fit.fit(plan, training, unseen, tmp_path / name, design=SMALL, tell=tell)

    def stop(text: str) -> None:
        if "epoch 2" in text:
            raise Interrupted

    run("whole")
    with pytest.raises(Interrupted):
        run("parts", stop)
    assert load(tmp_path / "parts" / "segmenter.last.pt")["epoch"] == 2
    seen: list[str] = []
    run("parts", seen.append)
    assert seen[0] == "resuming after epoch 2"
    for file in ("segmenter.last.pt", "segmenter.best.pt"):
        whole, parts = (load(tmp_path / name / file) for name in ("whole", "parts"))
        assert parts["epoch"] == whole["epoch"]
        assert parts["best"] == whole["best"]
        for part in ("weights", "raw"):
            for name, weight in whole[part].items():
                assert torch.equal(parts[part][name], weight), (file, part, name)
    assert [row["epoch"] for row in rows(tmp_path / "parts")] == ["1", "2", "3", "4"]
    for whole_row, row in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert row | {"seconds": ""} == whole_row | {"seconds": ""}


@pytest.mark.parametrize(
    ("changes", "design", "seed", "told"),
    (
        ({"rate": 1e-3}, SMALL, 0, "rate 0.005 instead of 0.001"),
        ({}, dataclasses.replace(SMALL, width=4), 0, "width 8 instead of 4"),
        ({}, SMALL, 9, "other data"),
    ),
)
def test_another_recipe_network_or_data_is_not_resumed(
    tmp_path: Path, changes: dict[str, Any], design: Design, seed: int, told: str
) -> None:
    plan = recipe(epochs=1, steps_per_epoch=1)
    fit.fit(plan, discs(8), discs(4, 1, "b"), tmp_path, design=SMALL)
    before = load(tmp_path / "segmenter.last.pt")
    with pytest.raises(ValueError, match=f"was made with {told}: resume it with its own"):
        fit.fit(
            dataclasses.replace(plan, **changes),
            discs(8, seed),
            discs(4, 1, "b"),
            tmp_path,
            design=design,
        )
    assert load(tmp_path / "segmenter.last.pt")["recipe"] == before["recipe"]


def test_a_resumed_training_may_run_on_other_hardware_and_for_longer(tmp_path: Path) -> None:
    plan = recipe(epochs=1, steps_per_epoch=1)
    for each in (plan, dataclasses.replace(plan, threads=2, minutes=5.0, device="auto")):
        fit.fit(
            each,
            discs(8),
            discs(4, 1, "b"),
            tmp_path,
            design=SMALL,
        )
    assert load(tmp_path / "segmenter.last.pt")["epoch"] == 1


def test_the_average_follows_the_weights_as_the_formula_says() -> None:
    torch.manual_seed(0)
    network = build(SMALL)
    average = checkpoint.averaged(network)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for step, decay in enumerate([0.1, 2 / 11, 0.2, 0.2]):
        for value in network.state_dict().values():
            value.add_(torch.randn_like(value) if value.is_floating_point() else 1)
        checkpoint.follow(average, network, 0.2, step)
        for name, value in network.state_dict().items():
            old = expected[name]
            moved = decay * old + (1 - decay) * value if value.is_floating_point() else value
            expected[name] = moved.clone()
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not any(each.requires_grad for each in average.parameters())


def test_the_averaged_weights_are_saved_for_use(tmp_path: Path) -> None:
    fit.fit(recipe(), discs(8), discs(4, 1, "b"), tmp_path, design=SMALL)
    saved = load(tmp_path / "segmenter.last.pt")
    differs = [not torch.equal(saved["raw"][name], saved["weights"][name]) for name in saved["raw"]]
    # only the counter of batches is the same
    assert sum(not each for each in differs) == sum("num_batches" in name for name in saved["raw"])


def test_a_final_training_keeps_the_last_weights_and_needs_no_validation(tmp_path: Path) -> None:
    plan = recipe(final=True, epochs=3, steps_per_epoch=2, patience=1)
    best = fit.fit(plan, discs(8), None, tmp_path / "blind", design=SMALL)
    # what is measured decides nothing
    fit.fit(plan, discs(8), discs(4, 1, "b"), tmp_path / "seen", design=SMALL)
    for name, weight in load(best)["weights"].items():
        assert torch.equal(weight, load(tmp_path / "seen/segmenter.best.pt")["weights"][name])
        assert torch.equal(weight, load(tmp_path / "blind/segmenter.last.pt")["weights"][name])
    assert load(best)["epoch"] == load(best)["best_epoch"] == 3
    assert load(best)["best"] is None
    assert load(tmp_path / "seen/segmenter.best.pt")["best"] is not None
    assert [row["dice"] for row in rows(tmp_path / "blind")] == ["", "", ""]


def test_without_validation_only_a_final_training_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only a final training makes sense"):
        fit.fit(recipe(), discs(8), None, tmp_path, design=SMALL)


def test_a_patient_on_both_sides_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^a would both train and validate"):
        fit.fit(recipe(), discs(8), discs(4, 1), tmp_path, design=SMALL)
    assert not (tmp_path / "run.json").exists()


def test_pictures_of_another_make_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pictures of 5 slices and 3 structures, the network"):
        fit.fit(recipe(), discs(8, slices=5), discs(4, 1, "b"), tmp_path, design=SMALL)


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    broken = discs(8)
    broken.inputs[:] = np.inf
    with pytest.raises(ValueError, match="the loss is not a number in epoch 1"):
        fit.fit(recipe(), broken, discs(4, 1, "b"), tmp_path, design=SMALL)


def test_run_json_says_what_made_the_networks(tmp_path: Path) -> None:
    origin = {"data": [{"name": "mine", "set": {"seed": 4}}]}
    for task in ("segmenter", "localiser"):
        best = fit.fit(
            recipe(task=task, epochs=1, steps_per_epoch=1),
            discs(8),
            discs(4, 1, "b"),
            tmp_path,
            design=SMALL,
            about=origin,
        )
    written = json.loads((tmp_path / "run.json").read_text())["networks"]
    assert list(written) == ["segmenter", "localiser"]
    about = written["localiser"]["about"]
    assert about["data"] == origin["data"]
    assert about["pictures"]["training"]["patients"] == ["a"]
    assert about["pictures"]["validation"]["patients"] == ["b"]
    assert about["pictures"]["training"]["count"] == 8
    assert about["versions"]["torch"] == torch.__version__
    assert written["localiser"]["recipe"]["seed"] == 1
    assert load(best)["about"] == about
    # the digest tells pictures apart that differ in one pixel
    other = discs(8)
    other.inputs[3, 1, 20, 20] += 0.5
    assert checkpoint.described(other) != about["pictures"]["training"]
    assert checkpoint.described(discs(8)) == about["pictures"]["training"]


def test_weights_to_start_from_are_taken_over(tmp_path: Path) -> None:
    design = Design(kind="unet", width=4)
    begun = build(design).state_dict()
    body = {name: weight + 1 for name, weight in begun.items() if name.startswith("body.")}
    refined = dataclasses.replace(design, point_rend=True)
    state = fit.begin(recipe(), refined, body)
    for name, weight in body.items():
        assert torch.equal(state.network.state_dict()[name], weight)
        assert torch.equal(state.average.state_dict()[name], weight)
    with pytest.raises(ValueError, match=r"do not fit the network: head\.weight"):
        fit.begin(recipe(), refined, begun)


def test_training_stops_without_progress_and_without_time() -> None:
    state = fit.begin(recipe(), SMALL)
    plan = recipe(epochs=50)
    assert not fit.finished(plan, state)
    state.epoch, state.best_epoch = 9, 3
    assert fit.finished(dataclasses.replace(plan, patience=6), state)
    assert not fit.finished(dataclasses.replace(plan, patience=6, final=True), state)
    assert not fit.finished(dataclasses.replace(plan, patience=7), state)
    state.seconds = 61.0
    assert fit.finished(dataclasses.replace(plan, patience=7, minutes=1.0), state)
    assert not fit.finished(dataclasses.replace(plan, patience=7, minutes=2.0), state)
    state.epoch = 50
    assert fit.finished(dataclasses.replace(plan, patience=99), state)


def test_the_rate_rises_then_falls() -> None:
    state = fit.begin(recipe(), SMALL)
    plan = recipe(steps_per_epoch=100, epochs=4, rate=1.0)
    first, warm = (fit.learning_rate(plan, state, step) for step in (0, 60))
    state.epoch = 3
    last = fit.learning_rate(plan, state, 99)
    assert first < 0.05
    assert warm > 0.9
    assert 0.02 <= last < 0.05
    constant = dataclasses.replace(plan, schedule="constant")
    assert fit.learning_rate(constant, state, 99) == 1.0


def test_little_time_makes_the_rate_fall_sooner() -> None:
    state = fit.begin(recipe(), SMALL)
    plan = recipe(steps_per_epoch=100, epochs=100, rate=1.0)
    state.epoch, state.seconds = 9, 54.0
    assert fit.learning_rate(plan, state, 100) > 0.97
    assert fit.learning_rate(dataclasses.replace(plan, minutes=1.0), state, 100) == pytest.approx(
        0.02
    )


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device found"):
        fit.begin(recipe(device="cuda"), SMALL)
    assert fit.device_of(recipe(device="auto")).type == "cpu"


@pytest.mark.parametrize(
    ("able", "expected"),
    (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ),
)
def test_half_precision_only_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], expected: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert fit.precision(torch.device("cpu")) == expected
    with fit.autocast(torch.device("cpu")):
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2)).dtype == expected


def test_batches_made_ahead_are_the_same_batches() -> None:
    plain = list(fit.batches(recipe(), 3, discs(8)))
    ahead = list(fit.prefetched(fit.batches(recipe(), 3, discs(8))))
    assert len(plain) == len(ahead) == 8
    for (pictures, truth), (same_pictures, same_truth) in zip(plain, ahead, strict=True):
        assert torch.equal(pictures, same_pictures)
        assert torch.equal(truth, same_truth)
    other = next(fit.batches(recipe(), 4, discs(8)))
    assert not torch.equal(other[0], plain[0][0])


def test_an_error_while_making_batches_ahead_arrives() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    items = fit.prefetched(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(items)
    assert threading.active_count() == 1


# -- the command ----------------------------------------------------------------------------

PATIENTS = {"p1": "semireal", "p2": "semireal", "p3": "annotated", "p4": "annotated"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"), PATIENTS | {"f1": "phantom"})


def invoke(*arguments: object) -> Result:
    small = ("--epochs", 1, "--steps", 1, "--batch", 2, "--width", 8, "--threads", 1)
    return CliRunner().invoke(command, [*map(str, arguments), *map(str, small)])


def test_the_command_trains_both_networks_and_keeps_the_held_out_out(
    data: Path, tmp_path: Path
) -> None:
    result = invoke("--data", data, "--run", tmp_path, "--hold-out", "p2", "--hold-out", "p3")
    assert result.exit_code == 0, result.output
    assert "segmenter: 12 pictures of 3 patients train, 8 of 2 validate" in result.output
    written = json.loads((tmp_path / "run.json").read_text())["networks"]
    for task in ("localiser", "segmenter"):
        about = written[task]["about"]
        assert about["split"]["training"]["patients"] == ["f1", "p1", "p4"]
        assert about["pictures"]["validation"]["patients"] == ["p2", "p3"]
        assert about["data"][0]["set"]["made_by"] == "discs"
        assert (tmp_path / f"{task}.best.pt").exists()
        assert str(tmp_path) not in json.dumps(written)


def test_the_command_draws_patients_by_lot_and_trains_what_is_asked(
    data: Path, tmp_path: Path
) -> None:
    result = invoke(
        *("--data", data, "--run", tmp_path, "--task", "segmenter"),
        *("--network", "hrnet", "--point-rend", "--validation-share", 0.5),
    )
    assert result.exit_code == 0, result.output
    entry = json.loads((tmp_path / "run.json").read_text())["networks"]
    assert list(entry) == ["segmenter"]
    design = entry["segmenter"]["design"]
    assert (design["kind"], design["point_rend"], design["width"]) == ("hrnet", True, 8)
    split = entry["segmenter"]["about"]["split"]
    drawn = split["validation"]["patients"]
    assert sorted(PATIENTS[name] for name in drawn) == ["annotated", "semireal"]
    assert "f1" in split["training"]["patients"]


def test_the_final_command_trains_on_everybody(data: Path, tmp_path: Path) -> None:
    result = invoke("--data", data, "--run", tmp_path, "--task", "segmenter", "--final")
    assert result.exit_code == 0, result.output
    assert "20 pictures of 5 patients train, none validate" in result.output
    assert load(tmp_path / "segmenter.best.pt")["recipe"]["final"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    (
        (["--hold-out", "p9"], "Error: no patient p9 to hold out; the data has f1, p1, p2, p3, p4"),
        (["--validation", "DATA"], "would both train and validate: split by patient"),
        (["--validation", "EMPTY"], "holds no data set; make one with 'hiptrain prepare'"),
    ),
)
def test_what_cannot_be_trained_is_one_clear_line(
    data: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"DATA": str(data), "EMPTY": str(tmp_path / "empty")}
    given = [places.get(each, each) for each in arguments]
    result = invoke("--data", data, "--run", tmp_path / "run", *given)
    assert result.exit_code == 1
    assert told in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


# -- the export -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of untrained networks of the shipped kind."""
    folder = tmp_path_factory.mktemp("run")
    for task, design in (("localiser", LOCALISER_DESIGN), ("segmenter", SEGMENTER_DESIGN)):
        plan = recipe(task=task)
        state = fit.begin(plan, dataclasses.replace(design, width=8))
        origin = {"split": {"training": {"patients": ["p1"]}, "validation": {"patients": ["p2"]}}}
        own = fit.provenance(plan, state, discs(2), None, origin)
        checkpoint.save(state, folder / f"{task}.best.pt", own)
    return folder


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.timeout(600)
def test_the_exported_bundle_answers_like_the_networks(run: Path, tmp_path: Path) -> None:
    export.export([run], tmp_path, export.About(id="try", version="0.0.1", name="a try"))
    bundle = open_bundle(tmp_path)
    assert bundle.card.id == "try"
    described = json.loads((tmp_path / "bundle.json").read_text())
    training = described["training"]
    assert (training["training_series"], training["held_out_series"]) == (["p1"], ["p2"])
    assert training["networks"]["segmenter"]["seed"] == recipe().seed
    for name, digest in described["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    for task in ("localiser", "segmenter"):
        network = restore_network(load(run / f"{task}.best.pt"))
        spec = bundle.card.localiser if task == "localiser" else bundle.card.segmenter
        session = ort.InferenceSession(
            tmp_path / export.FILES[task], providers=["CPUExecutionProvider"]
        )
        for batch in (1, 3):
            pictures = torch.rand(batch, spec.context, spec.rows, spec.columns)
            with torch.no_grad():
                expected = Probability(network).eval()(pictures).numpy()
            (answer,) = session.run(None, {"pictures": pictures.numpy()})
            np.testing.assert_allclose(answer, expected, atol=1e-4)
