"""``fit``: training of both networks."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hiptrain.cli.common import FOLDER, HELD_OUT, chosen, source_options


@click.command()
@source_options
@click.option("--run", required=True, type=FOLDER, help="training sets, logs and checkpoints")
@click.option("--hold-out", multiple=True, default=HELD_OUT, show_default=True)
@click.option("--draws", default=12, show_default=True, help="semi-real series per anatomy")
@click.option("--phantoms", default=32, show_default=True)
@click.option("--minutes", default=30.0, show_default=True, help="per network")
@click.option("--epochs", default=25, show_default=True)
@click.option("--steps", default=60, show_default=True, help="per epoch")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0))
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--task", type=click.Choice(["localiser", "segmenter"]), multiple=True, help="default: both"
)
def fit(
    *,
    source: Path,
    heads: Path,
    run: Path,
    hold_out: tuple[str, ...],
    draws: int,
    phantoms: int,
    minutes: float,
    epochs: int,
    steps: int,
    seed: int,
    threads: int,
    task: tuple[str, ...],
) -> None:
    """Make the training set and train the networks. Continues where it was interrupted."""
    from hiptrain import dataset
    from hiptrain import fit as training

    found = chosen(source, ())
    names = [name for name in found if name not in hold_out]
    kept = [name for name in found if name in hold_out]
    if not names or not kept:
        raise click.ClickException(
            f"{len(names)} series to train on and {len(kept)} held out; both are needed"
        )
    plans = {
        "training": (names, dataset.Plan(draws=draws, phantoms=phantoms, strangers=30, seed=seed)),
        "validation": (
            kept,
            dataset.Plan(draws=4, plain=1, phantoms=5, strangers=2, seed=seed + 6),
        ),
    }
    for part, (chosen, plan) in plans.items():
        jobs = dataset.plan_jobs(source, chosen, plan)
        with click.progressbar(length=len(jobs), label=f"{part} set") as bar:
            dataset.build(jobs, heads, run / part, workers=threads, done=bar.update)
    about = {"training_series": names, "held_out_series": kept, "draws": draws}
    about |= {"phantoms": phantoms, "seed": seed}
    (run / "data.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    read = {"localiser": dataset.read_planes, "segmenter": dataset.read_crops}
    for each in task or tuple(read):
        recipe = training.Recipe(
            task=each,  # type: ignore[arg-type]
            steps_per_epoch=steps,
            epochs=epochs,
            minutes=minutes,
            seed=seed,
            threads=threads,
        )
        pictures, unseen = read[each](run / "training"), read[each](run / "validation")
        with click.progressbar(length=epochs * steps, label=each) as bar:
            best = training.fit(
                recipe,
                pictures,
                unseen,
                run,
                tell=lambda text: click.echo(f"\n{text}"),
                step_done=bar.update,
            )
        click.echo(f"\nbest {each}: {best}")
