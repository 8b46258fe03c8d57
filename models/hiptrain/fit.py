"""Training of one network: short named steps, a CSV log, checkpoints to resume from.

Shapes: pictures ``(B, C, H, W)``, truth ``(B, K, H, W)``. The same recipe, data and number
of threads give the same weights on the same kind of machine, interrupted or not, as long as
no time limit (``minutes``) bends the schedule.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from hiptrain.augment import LOCALISER_CHANGES, SEGMENTER_CHANGES, Changes, changed
from hiptrain.checkpoint import State, averaged, described, follow, record, resume, save, versions
from hiptrain.dataset import Pictures
from hiptrain.losses import dice, dice_counts, loss_of, segmentation_loss
from hiptrain.networks import LOCALISER_DESIGN, SEGMENTER_DESIGN, Design, build, per_side
from hiptrain.split import refuse_leak

Task = Literal["localiser", "segmenter"]
DESIGNS: dict[Task, Design] = {"localiser": LOCALISER_DESIGN, "segmenter": SEGMENTER_DESIGN}
CHANGES: dict[Task, Changes] = {"localiser": LOCALISER_CHANGES, "segmenter": SEGMENTER_CHANGES}
_Item = TypeVar("_Item")
_FIELDS = ("epoch", "seconds", "rate", "loss", "validation_loss", "figure", "dice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one network is trained.

    ``minutes`` bounds the time of the whole training; without it the schedule depends on
    nothing but the numbers here. ``final`` trains to the end of the schedule and keeps the
    last weights: validation, if there is any, is measured but decides nothing.
    """

    task: Task
    steps_per_epoch: int = 150
    batch: int = 16
    epochs: int = 20
    rate: float = 3e-3
    decay: float = 1e-4
    #: "cosine" falls to 2 % of the rate at the end, "constant" stays
    schedule: Literal["cosine", "constant"] = "cosine"
    #: steps until the full rate
    warm_up: int = 60
    patience: int = 20
    minutes: float | None = None
    final: bool = False
    #: decay of the moving average of the weights, per step
    average: float = 0.995
    #: share of the pictures in a batch that show a structure
    shown: float = 0.75
    seed: int = 1
    threads: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def fit(
    recipe: Recipe,
    training: Pictures,
    validation: Pictures | None,
    folder: Path,
    *,
    design: Design | None = None,
    about: Mapping[str, object] | None = None,
    start: Mapping[str, Tensor] | None = None,
    tell: Callable[[str], object] = lambda _: None,
    step_done: Callable[[int], object] = lambda _: None,
) -> Path:
    """Train one network; returns the checkpoint to use.

    ``folder`` gets ``<task>.log.csv``, ``<task>.last.pt`` (resumed from when it is there),
    ``<task>.best.pt`` (of the epoch with the best mean Dice on the validation pictures, or
    the last one in a ``final`` training) and an entry in ``run.json``. Stops after
    ``epochs``, ``minutes``, or ``patience`` epochs without a better Dice.

    Parameters
    ----------
    validation
        Pictures of patients who do not train; ``None`` only in a ``final`` training.
    about
        Where the data came from: goes into the checkpoints and ``run.json`` as it is.
    start
        Weights to begin with; parts of the network that they lack begin at random.

    Raises
    ------
    ValueError
        If a patient is on both sides, there is nothing to validate on, the checkpoint in
        ``folder`` is of another recipe or data, or the loss is no longer a number.
    """
    if validation is None and not recipe.final:
        raise ValueError("without validation pictures only a final training makes sense")
    refuse_leak(training.patients, validation.patients if validation else ())
    design = design or DESIGNS[recipe.task]
    refuse_misfit(design, training)
    folder.mkdir(parents=True, exist_ok=True)
    last, best = folder / f"{recipe.task}.last.pt", folder / f"{recipe.task}.best.pt"
    state = begin(recipe, design, start)
    own = provenance(recipe, state, training, validation, about or {})
    if last.exists():
        resume(state, last, own)
        tell(f"resuming after epoch {state.epoch}")
        step_done(state.epoch * recipe.steps_per_epoch)
    log = Log(folder / f"{recipe.task}.log.csv", keep=state.epoch)
    record(folder, recipe.task, own | outcome(state))
    while not finished(recipe, state):
        started = time.monotonic()
        loss = train_epoch(recipe, state, training, step_done)
        judged = validate(state.average, validation, recipe) if validation else None
        rate = learning_rate(recipe, state, recipe.steps_per_epoch)
        state.epoch += 1
        state.seconds += time.monotonic() - started
        if better(recipe, state, judged):
            save(state, best, own)
        save(state, last, own)
        log.write(state, rate=rate, loss=loss, judged=judged)
        record(folder, recipe.task, own | outcome(state))
        tell(sentence(recipe, state, loss, judged))
    if recipe.final:
        save(state, best, own)
    return best


def refuse_misfit(design: Design, pictures: Pictures) -> None:
    """Refuse pictures or structures of another number than the network takes."""
    there = pictures.inputs.shape[1], pictures.truths.shape[1]
    if there != (design.inputs, design.outputs):
        raise ValueError(
            f"the data has pictures of {there[0]} slices and {there[1]} structures, the network "
            f"takes {design.inputs} and {design.outputs}: make the data anew"
        )


def begin(recipe: Recipe, design: Design, start: Mapping[str, Tensor] | None = None) -> State:
    """A fresh network, its average and its optimiser, on the device of the recipe."""
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    device = device_of(recipe)
    network = build(design)
    if start is not None:
        stray = network.load_state_dict(start, strict=False).unexpected_keys
        if stray:
            raise ValueError(f"the weights to start from do not fit the network: {stray[0]}")
    network = network.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision(device) == torch.float16)
    return State(network=network, average=averaged(network), optimiser=optimiser, scaler=scaler)


def device_of(recipe: Recipe) -> Any:
    """Where to train: a GPU if there is one, unless the recipe says otherwise.

    Raises
    ------
    ValueError
        If the recipe wants a GPU and there is none.
    """
    there = torch.cuda.is_available()
    if recipe.device == "cuda" and not there:
        raise ValueError("no CUDA device found; take --device cpu")
    return torch.device("cuda" if there and recipe.device != "cpu" else "cpu")


def precision(device: Any) -> Any:
    """The number format of the forward pass: the fastest that the device computes in hardware."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # asked before torch could tell, the answer is the safe one
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def autocast(device: Any) -> Any:
    """Context in which a forward pass runs in that precision."""
    dtype = precision(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def finished(recipe: Recipe, state: State) -> bool:
    """Whether the schedule, the time or (except in a final training) the patience is over."""
    late = recipe.minutes is not None and state.seconds >= 60 * recipe.minutes
    waited = state.epoch - state.best_epoch
    stuck = not recipe.final and state.epoch > 0 and waited >= recipe.patience
    return state.epoch >= recipe.epochs or late or stuck


def train_epoch(
    recipe: Recipe, state: State, training: Pictures, step_done: Callable[[int], object]
) -> float:
    """Take ``steps_per_epoch`` steps; returns the mean loss."""
    state.network.train()
    device = next(state.network.parameters()).device
    # what the network itself draws (points, drop-out) depends on seed and epoch alone
    torch.manual_seed(recipe.seed * 100_003 + state.epoch)
    total = 0.0
    for step, (pictures, truth) in enumerate(prefetched(batches(recipe, state.epoch, training))):
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(recipe, state, step)
        with autocast(device):
            loss = loss_of(state.network, pictures.to(device), truth.to(device))
        state.optimiser.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        state.scaler.unscale_(state.optimiser)
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
        state.scaler.step(state.optimiser)
        state.scaler.update()
        taken = state.epoch * recipe.steps_per_epoch + step
        follow(state.average, state.network, recipe.average, taken)
        total += float(loss.detach())
        step_done(1)
    if not math.isfinite(total):
        raise ValueError(
            f"the loss is not a number in epoch {state.epoch + 1}; take a lower rate than "
            f"{recipe.rate}, or look for broken pictures in the data"
        )
    return total / recipe.steps_per_epoch


def learning_rate(recipe: Recipe, state: State, step: int) -> float:
    """Short warm-up, then the schedule, over epochs or minutes, whichever ends first."""
    warm = min(1.0, (state.epoch * recipe.steps_per_epoch + step + 1) / recipe.warm_up)
    if recipe.schedule == "constant":
        return recipe.rate * warm
    share = (state.epoch + step / recipe.steps_per_epoch) / recipe.epochs
    if state.epoch and recipe.minutes is not None:
        pace = state.seconds / state.epoch
        spent = state.seconds + pace * step / recipe.steps_per_epoch
        share = max(share, spent / (60 * recipe.minutes))
    cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
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


def prefetched(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items in the same order; the next one is made while this one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def tensors(pictures: Pictures, chosen: Any) -> tuple[Tensor, Tensor]:
    """Inputs and truths of the chosen pictures as float32 tensors."""
    inputs = torch.from_numpy(pictures.inputs[chosen].astype(np.float32))
    truths = torch.from_numpy(pictures.truths[chosen].astype(np.float32) / 255.0)
    return inputs, truths


def logits_of(network: Any, pictures: Tensor) -> Tensor:
    """Logits ``(B, K, H, W)`` of the structures, whatever the raw outputs mean."""
    raw = network(pictures.contiguous(memory_format=torch.channels_last))
    return per_side(raw) if network.design.sides else raw.float()


@torch.no_grad()
def validate(network: Any, validation: Pictures, recipe: Recipe) -> tuple[float, list[float]]:
    """Mean loss, and Dice of each channel over all pixels of the validation pictures."""
    network.eval()
    device = next(network.parameters()).device
    total, counts = 0.0, torch.zeros((), device=device)
    for start in range(0, len(validation), recipe.batch):
        inputs, truth = tensors(validation, slice(start, start + recipe.batch))
        inputs, truth = inputs.to(device), truth.to(device)
        with autocast(device):
            logits = logits_of(network, inputs)
        total += float(segmentation_loss(logits, truth)) * len(inputs)
        counts = counts + dice_counts(logits, truth)
    return total / len(validation), dice(counts)


def figure_of(values: Sequence[float]) -> float:
    """Mean Dice over the structures that the validation pictures have; 0 where they have none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else 0.0


def better(recipe: Recipe, state: State, judged: tuple[float, list[float]] | None) -> bool:
    """Note the figure of the epoch just ended; whether its weights are to be kept.

    In a final training the epoch is the last one's by definition, whatever its figure.
    """
    figure = None if judged is None else figure_of(judged[1])
    if recipe.final:
        state.best, state.best_epoch = figure, state.epoch
        return False
    if figure is None or (state.best is not None and figure <= state.best):
        return False
    state.best, state.best_epoch = figure, state.epoch
    return True


def provenance(
    recipe: Recipe,
    state: State,
    training: Pictures,
    validation: Pictures | None,
    about: Mapping[str, object],
) -> dict[str, Any]:
    """What made a network: design, recipe, and under ``about`` data, versions and machine."""
    device = next(state.network.parameters()).device
    return {
        "design": state.network.design.as_dict(),
        "recipe": recipe.as_dict(),
        "about": {
            **about,
            "pictures": {"training": described(training), "validation": described(validation)},
            "parameters": sum(each.numel() for each in state.network.parameters()),
            "versions": versions(),
            "device": device.type,
            "precision": str(precision(device)).removeprefix("torch."),
        },
    }


def outcome(state: State) -> dict[str, Any]:
    """How far a training came."""
    return {
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "validation_dice": None if state.best is None else round(state.best, 4),
        "seconds": round(state.seconds, 1),
    }


def sentence(
    recipe: Recipe, state: State, loss: float, judged: tuple[float, list[float]] | None
) -> str:
    """One epoch in one line."""
    text = f"{recipe.task} epoch {state.epoch}/{recipe.epochs}: loss {loss:.4f}"
    if judged is not None:
        shown = " ".join(f"{value:.4f}" for value in judged[1])
        text += f", validation {judged[0]:.4f}, Dice {shown}"
    return f"{text}, {state.seconds:.0f} s"


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

    def write(
        self, state: State, *, rate: float, loss: float, judged: tuple[float, list[float]] | None
    ) -> None:
        row = {
            "epoch": state.epoch,
            "seconds": round(state.seconds, 1),
            "rate": f"{rate:.6f}",
            "loss": f"{loss:.5f}",
        }
        if judged is not None:
            row["validation_loss"] = f"{judged[0]:.5f}"
            row["figure"] = f"{figure_of(judged[1]):.4f}"
            row["dice"] = " ".join(f"{value:.4f}" for value in judged[1])
        with self._path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, _FIELDS).writerow(row)
