"""``fit``: training of the networks on data set folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hiptrain.cli.common import FOLDER, SOURCE, data_option

if TYPE_CHECKING:
    from hiptrain.fit import Recipe
    from hiptrain.networks import Design
    from hiptrain.split import Split

TASKS = ("localiser", "segmenter")
NETWORKS = ("unet", "unetpp", "attention_unet", "hrnet")
COUNT = click.IntRange(min=1)


@click.command()
@data_option
@click.option("--run", required=True, type=FOLDER, help="logs, checkpoints and run.json")
@click.option("--hold-out", multiple=True, help="patient who does not train (may be repeated)")
@click.option(
    "--validation", multiple=True, type=SOURCE, help="data set folder that only validates"
)
@click.option(
    "--validation-share",
    default=0.2,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="of the patients, by lot, where neither --hold-out nor --validation is given",
)
@click.option("--final", is_flag=True, help="all patients train; the last weights are kept")
@click.option("--task", type=click.Choice(TASKS), multiple=True, help="default: both")
@click.option("--network", type=click.Choice(NETWORKS), default="unet", show_default=True)
@click.option("--width", type=COUNT, help="channels of the first level; default: the design's")
@click.option("--point-rend/--no-point-rend", default=False, help="refine the segmenter's edges")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="limit per network")
@click.option("--epochs", default=25, show_default=True, type=COUNT)
@click.option("--steps", default=60, show_default=True, type=COUNT, help="per epoch")
@click.option("--batch", default=16, show_default=True, type=COUNT)
@click.option("--rate", default=3e-3, show_default=True, help="highest learning rate")
@click.option(
    "--patience", default=20, show_default=True, type=COUNT, help="epochs without progress"
)
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0))
@click.option("--threads", default=2, show_default=True, type=COUNT)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
def fit(
    *,
    data: tuple[Path, ...],
    run: Path,
    hold_out: tuple[str, ...],
    validation: tuple[Path, ...],
    validation_share: float,
    final: bool,
    task: tuple[str, ...],
    network: str,
    width: int | None,
    point_rend: bool,
    minutes: float | None,
    epochs: int,
    steps: int,
    batch: int,
    rate: float,
    patience: int,
    seed: int,
    threads: int,
    device: str,
) -> None:
    """Train the networks on data set folders. Continues where it was interrupted.

    Training and validation never share a patient. --network and --point-rend are about the
    segmenter; the localiser has one design.
    """
    from hiptrain import fit as training

    try:
        split = _split(data, hold_out, validation, validation_share, final=final, seed=seed)
        about: dict[str, object] = {"data": described(data + validation), "split": split.as_dict()}
        for each in task or TASKS:
            recipe = training.Recipe(
                task=each,  # type: ignore[arg-type]
                steps_per_epoch=steps,
                batch=batch,
                epochs=epochs,
                rate=rate,
                patience=patience,
                minutes=minutes,
                final=final,
                seed=seed,
                threads=threads,
                device=device,  # type: ignore[arg-type]
            )
            design = design_of(each, network, width, point_rend=point_rend)
            best = _train(recipe, design, split, run, about)
            click.echo(f"\n{each}: {best}")
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def design_of(task: str, network: str, width: int | None, *, point_rend: bool) -> Design:
    """The design that the options ask for; a width of ``None`` is the task's own."""
    from hiptrain.networks import LOCALISER_DESIGN, SEGMENTER_DESIGN

    changes: dict[str, Any] = {} if width is None else {"width": width}
    if task == "localiser":
        return dataclasses.replace(LOCALISER_DESIGN, **changes)
    changes |= {"kind": network, "point_rend": point_rend}
    return dataclasses.replace(SEGMENTER_DESIGN, **changes)


def described(folders: Sequence[Path]) -> list[dict[str, object]]:
    """Names of data set folders and what they say about themselves."""
    from hiptrain.dataset import read_set

    return [{"name": folder.name, "set": read_set(folder)} for folder in folders]


def _split(
    data: Sequence[Path],
    hold_out: Sequence[str],
    validation: Sequence[Path],
    share: float,
    *,
    final: bool,
    seed: int,
) -> Split:
    from hiptrain import split as splitting
    from hiptrain.dataset import list_cases

    cases = list_cases(data)
    if validation:
        held = splitting.hold_out(cases, hold_out)
        split = splitting.Split(
            training=held.training, validation=(*held.validation, *list_cases(validation))
        )
    elif hold_out or final:
        split = splitting.hold_out(cases, hold_out)
    else:
        split = splitting.share_out(cases, share, seed)
    splitting.refuse_leak(splitting.patients(split.training), splitting.patients(split.validation))
    return split


def _train(
    recipe: Recipe, design: Design, split: Split, run: Path, about: dict[str, object]
) -> Path:
    from hiptrain import dataset
    from hiptrain import fit as training

    read = {"localiser": dataset.read_planes, "segmenter": dataset.read_crops}[recipe.task]
    pictures = read(split.training)
    unseen = read(split.validation) if split.validation else None
    click.echo(
        f"{recipe.task}: {len(pictures)} pictures of {len(set(pictures.patients))} patients train, "
        + (f"{len(unseen)} of {len(set(unseen.patients))} validate" if unseen else "none validate")
    )
    with click.progressbar(length=recipe.epochs * recipe.steps_per_epoch, label=recipe.task) as bar:
        return training.fit(
            recipe,
            pictures,
            unseen,
            run,
            design=design,
            about=about,
            tell=lambda text: click.echo(f"\n{text}"),
            step_done=bar.update,
        )
