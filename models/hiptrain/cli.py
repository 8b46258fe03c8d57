"""Command line of the training: ``hiptrain synthesise | fit | evaluate | export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from hipscore.phantom import Burden

if TYPE_CHECKING:
    from hiptrain.anatomy import Anatomy

#: series kept out of training, so that there is something honest to measure on
HELD_OUT = ("series_09", "series_17", "series_22")
_FOLDER = click.Path(file_okay=False, path_type=Path)
_SOURCE = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make training data, train and measure the networks of hipscore."""


def _source_options(command: Any) -> Any:
    heads = click.option(
        "--heads", required=True, type=_FILE, help="femoral_heads.csv: a sphere for every head"
    )
    source = click.option(
        "--source",
        required=True,
        type=_SOURCE,
        help="folder with one folder or tar archive per coronal T1 series",
    )
    return source(heads(command))


def _chosen(source: Path, series: tuple[str, ...]) -> dict[str, Path]:
    from hiptrain.anatomy import find_series

    try:
        found = find_series(source)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    unknown = sorted(set(series) - set(found))
    if unknown:
        raise click.ClickException(
            f"{source} has no {', '.join(unknown)}; it has {', '.join(found)}"
        )
    return {name: path for name, path in found.items() if not series or name in series}


@main.command()
@_source_options
@click.option("--out", required=True, type=_FOLDER, help="one folder per series is made here")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--burden",
    type=click.Choice([item.value for item in Burden]),
    help="of all hips; default: drawn for each series",
)
@click.option("--series", multiple=True, help="only this series (may be repeated)")
@click.option("--new-study", is_flag=True, help="put each series into a new study")
def synthesise(
    *,
    source: Path,
    heads: Path,
    out: Path,
    seed: int,
    burden: str | None,
    series: tuple[str, ...],
    new_study: bool,
) -> None:
    """Turn real T1 series into STIR-like series with lesions of known extent.

    Writes DICOM with the scanner's headers, truth.json (scores and volumes) and
    truth.npz (masks by side).
    """
    from hiptrain.anatomy import load, read_heads
    from hiptrain.synthesise import Options, semireal, write

    spheres = read_heads(heads)
    wanted = _chosen(source, series)
    with click.progressbar(wanted.items(), label="synthesise", item_show_func=_name) as bar:
        for number, (name, path) in enumerate(bar):
            try:
                images, anatomy = load(path, spheres)
            except ValueError as error:
                raise click.ClickException(str(error)) from error
            rng = np.random.default_rng((seed, number))
            made = semireal(anatomy, rng, Options(burden=Burden(burden) if burden else None))
            about = (("source", name), ("seed", seed))
            key = f"{seed}/{burden}"
            write(images, made, out / name, key=key, new_study=new_study, about=about)
    click.echo(f"{len(wanted)} series in {out}")


def _name(item: tuple[str, Path] | None) -> str:
    return item[0] if item else ""


@main.command()
@_source_options
@click.option("--run", required=True, type=_FOLDER, help="training sets, logs and checkpoints")
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

    found = _chosen(source, ())
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


@main.command()
@_source_options
@click.option("--bundle", type=_SOURCE, help="default: the shipped one")
@click.option("--series", multiple=True, default=HELD_OUT, show_default=True)
@click.option("--draws", default=1, show_default=True, help="of every burden, per series")
@click.option("--phantoms", default=4, show_default=True)
@click.option("--seed", default=20_000, show_default=True, type=click.IntRange(min=0))
@click.option("--json", "target", type=click.Path(dir_okay=False, path_type=Path))
def evaluate(
    *,
    source: Path,
    heads: Path,
    bundle: Path | None,
    series: tuple[str, ...],
    draws: int,
    phantoms: int,
    seed: int,
    target: Path | None,
) -> None:
    """Measure a bundle on series it was not trained on, through the service's own code."""
    from hipscore.inference import BundleError, load_segmenter
    from hiptrain import evaluate as measuring
    from hiptrain.anatomy import load, read_heads

    try:
        segmenter = load_segmenter(bundle)
    except BundleError as error:
        raise click.ClickException(str(error)) from error
    spheres = read_heads(heads)
    anatomies: list[tuple[str, Anatomy]] = [
        (name, load(path, spheres)[1]) for name, path in _chosen(source, series).items()
    ]
    groups = {
        "semi-real": measuring.semireal_cases(anatomies, draws=draws, seed=seed),
        "T1": measuring.plain_cases(anatomies),
        "phantom": measuring.phantom_cases(phantoms, seed=seed),
    }
    figures = {}
    for name, cases in groups.items():
        if cases:
            with click.progressbar(length=len(cases), label=name) as bar:
                figures[name] = measuring.evaluate(cases, segmenter, done=bar.update)
    click.echo(f"{segmenter.card.id} {segmenter.card.version}: median (smallest to largest)")
    click.echo(measuring.table({name: measuring.summary(items) for name, items in figures.items()}))
    if target is not None:
        measuring.write_json(figures, target)
        click.echo(f"single figures in {target}")


@main.command()
@click.option("--run", required=True, type=_SOURCE, help="folder of 'hiptrain fit'")
@click.option("--out", required=True, type=_FOLDER, help="bundle folder to write")
@click.option("--id", "bundle_id", default="hip-unet-semireal", show_default=True)
@click.option("--version", required=True, help="for example 0.1.0")
@click.option("--name", default="U-Net for hip STIR, semi-real training", show_default=True)
@click.option("--figures", type=_FILE, help="JSON of 'hiptrain evaluate', for the card")
def export(
    *, run: Path, out: Path, bundle_id: str, version: str, name: str, figures: Path | None
) -> None:
    """Write the best networks of a run as a model bundle."""
    from hiptrain import card
    from hiptrain import export as exporting

    data = json.loads((run / "data.json").read_text(encoding="utf-8"))
    about = exporting.About(
        id=bundle_id,
        version=version,
        name=name,
        trained_on=card.trained_on(data),
        training_series=data.pop("training_series"),
        held_out_series=data.pop("held_out_series"),
        data=data,
    )
    try:
        exporting.export(run, out, about)
    except FileNotFoundError as error:
        raise click.ClickException(f"{error.filename} is missing; run 'hiptrain fit'") from error
    card.write(out, json.loads(figures.read_text(encoding="utf-8")) if figures else None)
    click.echo(f"bundle in {out}")


if __name__ == "__main__":
    main()
