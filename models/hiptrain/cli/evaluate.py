"""``evaluate``: figures of a bundle on series of known truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hipscore.domain import RESEARCH_USE
from hiptrain.cli.common import FILE, FOLDER, SOURCE, chosen

if TYPE_CHECKING:
    from hiptrain.anatomy import Anatomy

_TARGET = click.Path(dir_okay=False, path_type=Path)
_COUNT = click.IntRange(min=0)


@click.command()
@click.option("--source", type=SOURCE, help="folder with one folder or archive per T1 series")
@click.option("--heads", type=FILE, help="femoral_heads.csv: a sphere for every head in --source")
@click.option("--table", type=FILE, help="your own annotated cases, as for 'hiptrain annotated'")
@click.option("--labels", type=FILE, help="labels.toml of --table")
@click.option("--patient", multiple=True, help="only this patient of --table (may be repeated)")
@click.option("--bundle", type=SOURCE, help="default: the shipped one")
@click.option(
    "--series",
    multiple=True,
    help="T1 series of --source to measure on, none of which trained the bundle (may be repeated)",
)
@click.option("--draws", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--phantoms", default=4, show_default=True, type=_COUNT)
@click.option("--corruptions", is_flag=True, help="also every semi-real series in 10 bad ways")
@click.option("--refusals", default=0, show_default=True, type=_COUNT, help="series without hips")
@click.option("--seed", default=20_000, show_default=True, type=_COUNT)
@click.option("--json", "target", type=_TARGET, help="everything, figures of single hips too")
@click.option("--markdown", type=_TARGET, help="the tables")
@click.option("--out", type=FOLDER, help="plots and pictures go here")
@click.option("--pictures", default=0, show_default=True, type=_COUNT, help="worst hips to draw")
def evaluate(
    *,
    source: Path | None,
    heads: Path | None,
    table: Path | None,
    labels: Path | None,
    patient: tuple[str, ...],
    bundle: Path | None,
    series: tuple[str, ...],
    draws: int,
    phantoms: int,
    corruptions: bool,
    refusals: int,
    seed: int,
    target: Path | None,
    markdown: Path | None,
    out: Path | None,
    pictures: int,
) -> None:
    """Measure a bundle on series it was not trained on, through the service's own code.

    Either your own annotated cases (--table), or T1 anatomies (--source, --heads, --series):
    every series is given every burden of inflammation, --draws times; the T1 images as they
    are measure how hips are found in any contrast. Or both.
    """
    from hipscore.inference import BundleError, load_segmenter
    from hiptrain import corruptions as corrupting
    from hiptrain import evaluate as measuring

    if pictures and out is None:
        raise click.ClickException("--pictures needs --out, the folder to write them to")
    if table is None and not (source and heads and series):
        raise click.ClickException("give --table, or --source with --heads and --series")
    try:
        segmenter = load_segmenter(bundle)
        anatomies = _anatomies(source, heads, series)
        own = _annotated(table, labels, patient)
    except (BundleError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    cases = measuring.semireal_cases(anatomies, draws=draws, seed=seed)
    groups = {
        name: _measured(name, each, segmenter, segmenting=name != "T1, hips found only")
        for name, each in {
            "annotated": own,
            "semi-real": cases,
            "T1, hips found only": measuring.plain_cases(anatomies),
            "phantom": measuring.phantom_cases(phantoms, seed=seed),
        }.items()
        if each
    }
    robust = None
    if corruptions and cases:
        weak = measuring.semireal_cases(anatomies, draws=draws, seed=seed, fat=corrupting.WEAK_FAT)
        with click.progressbar(length=len(cases), label="corruptions") as bar:
            robust = measuring.robustness(cases, weak, segmenter, seed=seed, done=bar.update)
    bodies = [anatomy for _, anatomy in anatomies]
    refused = _refused(refusals, seed, bodies, segmenter) if refusals else None
    card = segmenter.card
    about = {
        "remark": RESEARCH_USE,
        "bundle": {"id": card.id, "version": card.version, "sha256": card.sha256},
        "series": sorted(name for name, _ in anatomies),
        "draws": draws,
        "seed": seed,
    }
    content = measuring.report(groups, about=about, robust=robust, refused=refused)
    click.echo(f"{card.id} {card.version}. {RESEARCH_USE}.")
    _tell(content, target, markdown)
    if out is not None:
        drawn = "annotated" if own else "semi-real"
        _draw(groups[drawn], own or cases, segmenter, out, pictures)


def _anatomies(
    source: Path | None, heads: Path | None, series: tuple[str, ...]
) -> list[tuple[str, Anatomy]]:
    from hiptrain.anatomy import load, read_heads

    if not (source and heads and series):
        return []
    spheres = read_heads(heads)
    return [(name, load(path, spheres)[1]) for name, path in chosen(source, series).items()]


def _annotated(table: Path | None, labels: Path | None, patients: tuple[str, ...]) -> list[Any]:
    if table is None:
        return []
    from hiptrain.annotated.truth import annotated_cases

    return list(annotated_cases(table, labels, patients=patients))


def _tell(content: Any, target: Path | None, markdown: Path | None) -> None:
    """Print the tables, and write them where they are wanted."""
    from hiptrain import tables

    for each in tables.tables(content):
        click.echo(f"\n{each.text()}")
    for line in tables.unwarned(content) if content["corruptions"] else ():
        click.echo(f"without a remark: {line}")
    if target is not None:
        target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        click.echo(f"everything in {target}")
    if markdown is not None:
        markdown.write_text(tables.markdown(content), encoding="utf-8")
        click.echo(f"tables in {markdown}")


def _measured(label: str, cases: Sequence[Any], segmenter: Any, *, segmenting: bool) -> Any:
    from hiptrain import evaluate as measuring

    try:
        with click.progressbar(length=len(cases), label=label) as bar:
            return measuring.evaluate(cases, segmenter, segmenting=segmenting, done=bar.update)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _refused(count: int, seed: int, anatomies: Sequence[Anatomy], segmenter: Any) -> Any:
    from hiptrain import evaluate as measuring
    from hiptrain import strangers

    series = (strangers.case(number, seed, anatomies=anatomies) for number in range(count))
    with click.progressbar(length=count, label="series without hips") as bar:
        return measuring.refuse(series, segmenter, done=bar.update)


def _draw(
    figures: Sequence[Any], cases: Sequence[Any], segmenter: Any, out: Path, pictures: int
) -> None:
    from hiptrain import plots

    out.mkdir(parents=True, exist_ok=True)
    try:
        paths = plots.plots(figures, out)
    except ImportError as error:
        raise click.ClickException(
            "plots need matplotlib: pip install 'hipscore[train]'"
        ) from error
    worst = plots.worst(figures, pictures)
    by_name = {case.name: case for case in cases}
    with click.progressbar(worst, label="pictures") as bar:
        paths += [plots.picture(by_name[case.name], hip, segmenter, out) for case, hip in bar]
    click.echo(f"{len(paths)} pictures in {out}")
