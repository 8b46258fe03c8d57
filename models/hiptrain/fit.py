"""Training of one network: twenty named steps, a CSV log, checkpoints to resume from."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hiptrain.augment import LOCALISER_CHANGES, SEGMENTER_CHANGES, Changes, changed
from hiptrain.dataset import Pictures
from hiptrain.losses import dice, dice_counts, segmentation_loss, sided_loss
from hiptrain.networks import LOCALISER_DESIGN, SEGMENTER_DESIGN, Design, UNet, per_side

Task = Literal["localiser", "segmenter"]
DESIGNS: dict[Task, Design] = {"localiser": LOCALISER_DESIGN, "segmenter": SEGMENTER_DESIGN}
CHANGES: dict[Task, Changes] = {"localiser": LOCALISER_CHANGES, "segmenter": SEGMENTER_CHANGES}
_FIELDS = ("epoch", "seconds", "rate", "loss", "validation_loss", "figure", "dice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one network is trained. ``minutes`` bounds the time of the whole training."""

    task: Task
    steps_per_epoch: int = 150
    batch: int = 16
    epochs: int = 20
    rate: float = 3e-3
    decay: float = 1e-4
    patience: int = 20
    minutes: float = 60.0
    #: share of the pictures in a batch that show a structure
    shown: float = 0.75
    seed: int = 1
    threads: int = 2

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(slots=True, kw_only=True)
class State:
    """All that changes during a training, and all that a resumed one needs."""

    network: Any
    optimiser: Any
    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0


def fit(
    recipe: Recipe,
    training: Pictures,
    validation: Pictures,
    folder: Path,
    *,
    design: Design | None = None,
    tell: Callable[[str], object] = lambda _: None,
    step_done: Callable[[int], object] = lambda _: None,
) -> Path:
    """Train one network; returns the checkpoint of its best epoch.

    ``folder`` gets ``<task>.log.csv``, ``<task>.last.pt`` (resumed from when it is there)
    and ``<task>.best.pt``. Stops after ``epochs``, ``minutes``, or ``patience`` epochs
    without a better mean Dice on the validation pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    last, best = folder / f"{recipe.task}.last.pt", folder / f"{recipe.task}.best.pt"
    state = begin(recipe, design or DESIGNS[recipe.task])
    if last.exists():
        resume(state, last)
        tell(f"resuming after epoch {state.epoch}")
    log = Log(folder / f"{recipe.task}.log.csv", keep=state.epoch)
    while state.epoch < recipe.epochs and not finished(recipe, state):
        started = time.monotonic()
        loss = train_epoch(recipe, state, training, step_done)
        validation_loss, figures = validate(state.network, validation, recipe)
        state.epoch += 1
        state.seconds += time.monotonic() - started
        figure = float(np.mean(figures))
        if figure > state.best:
            state.best, state.best_epoch = figure, state.epoch
            save(state, recipe, best)
        save(state, recipe, last)
        shown = " ".join(f"{value:.4f}" for value in figures)
        log.write(
            epoch=state.epoch,
            seconds=round(state.seconds, 1),
            rate=f"{learning_rate(recipe, state, 0):.6f}",
            loss=f"{loss:.5f}",
            validation_loss=f"{validation_loss:.5f}",
            figure=f"{figure:.4f}",
            dice=shown,
        )
        tell(
            f"{recipe.task} epoch {state.epoch}: loss {loss:.4f}, validation "
            f"{validation_loss:.4f}, Dice {shown}, {state.seconds:.0f} s"
        )
    return best


def begin(recipe: Recipe, design: Design) -> State:
    """A fresh network and its optimiser."""
    network = UNet(design).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    return State(network=network, optimiser=optimiser)


def finished(recipe: Recipe, state: State) -> bool:
    """Whether time or patience has run out."""
    waited = state.epoch - state.best_epoch
    return state.seconds >= 60 * recipe.minutes or (state.epoch > 0 and waited >= recipe.patience)


def train_epoch(
    recipe: Recipe, state: State, training: Pictures, step_done: Callable[[int], object]
) -> float:
    """Take ``steps_per_epoch`` steps; returns the mean loss."""
    state.network.train()
    total = 0.0
    for step, (pictures, truth) in enumerate(batches(recipe, state.epoch, training)):
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(recipe, state, step)
        with torch.autocast("cpu", torch.bfloat16):
            raw = state.network(pictures)
        loss = loss_of(state.network, raw, truth)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
        state.optimiser.step()
        total += float(loss.detach())
        step_done(1)
    return total / recipe.steps_per_epoch


def loss_of(network: Any, raw: Tensor, truth: Tensor) -> Tensor:
    """The loss that fits what the network's raw outputs mean."""
    return (sided_loss if network.design.sides else segmentation_loss)(raw, truth)


def learning_rate(recipe: Recipe, state: State, step: int) -> float:
    """Short warm-up, then a cosine down to 2 %, over epochs or minutes, whichever ends first."""
    share = (state.epoch + step / recipe.steps_per_epoch) / recipe.epochs
    if state.epoch:
        pace = state.seconds / state.epoch
        spent = state.seconds + pace * step / recipe.steps_per_epoch
        share = max(share, spent / (60 * recipe.minutes))
    warm = min(1.0, (state.epoch * recipe.steps_per_epoch + step + 1) / 60)
    cosine = 0.5 * (1 + float(np.cos(np.pi * min(share, 1.0))))
    return recipe.rate * warm * (0.02 + 0.98 * cosine)


def batches(recipe: Recipe, epoch: int, training: Pictures) -> Iterator[tuple[Tensor, Tensor]]:
    """Random, changed batches of one epoch; the same for the same seed and epoch."""
    rng = np.random.default_rng((recipe.seed, epoch))
    shows = training.shows_something()
    # pictures without any structure are the majority, and teach the least
    weights = np.where(
        shows, recipe.shown / max(shows.sum(), 1), (1 - recipe.shown) / max((~shows).sum(), 1)
    )
    weights /= weights.sum()
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for _ in range(recipe.steps_per_epoch):
        chosen = np.sort(rng.choice(len(training), recipe.batch, p=weights))
        pictures, truth = tensors(training, chosen)
        pictures, truth = changed(pictures, truth, CHANGES[recipe.task], generator)
        yield pictures.contiguous(memory_format=torch.channels_last), truth


def tensors(pictures: Pictures, chosen: Any) -> tuple[Tensor, Tensor]:
    """Inputs and truths of the chosen pictures as float32 tensors."""
    inputs = torch.from_numpy(pictures.inputs[chosen].astype(np.float32))
    truths = torch.from_numpy(pictures.truths[chosen].astype(np.float32) / 255.0)
    return inputs, truths


def validate(network: Any, validation: Pictures, recipe: Recipe) -> tuple[float, list[float]]:
    """Mean loss, and Dice of each channel over all validation pictures."""
    network.eval()
    total, counts = 0.0, torch.zeros(())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(validation), recipe.batch):
            inputs, truth = tensors(validation, slice(start, start + recipe.batch))
            raw = network(inputs.contiguous(memory_format=torch.channels_last))
            total += float(loss_of(network, raw, truth)) * len(inputs)
            logits = per_side(raw) if network.design.sides else raw
            counts = counts + dice_counts(logits, truth)
    return total / len(validation), dice(counts)


def save(state: State, recipe: Recipe, path: Path) -> None:
    """Write a checkpoint: whole or not at all."""
    partial = path.with_suffix(".part")
    torch.save(
        {
            "design": state.network.design.as_dict(),
            "recipe": recipe.as_dict(),
            "weights": state.network.state_dict(),
            "optimiser": state.optimiser.state_dict(),
            "epoch": state.epoch,
            "best": state.best,
            "best_epoch": state.best_epoch,
            "seconds": state.seconds,
        },
        partial,
    )
    partial.rename(path)


def resume(state: State, path: Path) -> None:
    """Continue where a checkpoint ended."""
    saved = torch.load(path, weights_only=True)
    state.network.load_state_dict(saved["weights"])
    state.optimiser.load_state_dict(saved["optimiser"])
    state.epoch, state.seconds = saved["epoch"], saved["seconds"]
    state.best, state.best_epoch = saved["best"], saved["best_epoch"]


class Log:
    """The CSV log; epochs after ``keep`` (of an interrupted run) are dropped."""

    def __init__(self, path: Path, keep: int) -> None:
        self._path = path
        rows = []
        if keep and path.exists():
            with path.open(newline="", encoding="utf-8") as stream:
                rows = [row for row in csv.DictReader(stream) if int(row["epoch"]) <= keep]
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, _FIELDS)
            writer.writeheader()
            writer.writerows(rows)

    def write(self, **row: object) -> None:
        with self._path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, _FIELDS).writerow(row)
