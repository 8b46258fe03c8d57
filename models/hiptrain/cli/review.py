"""``review``: pictures for experts who judge the outlines, and the tally of their sheets."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hiptrain.cli.common import FILE, FOLDER, SOURCE

_CASE = click.Path(exists=True, path_type=Path)


@click.group()
def review() -> None:
    """Have experts judge the automatic outlines, and count what they say."""


@review.command()
@click.option("--cases", multiple=True, type=_CASE, help="DICOM files, folders, tar archives")
@click.argument("more", nargs=-1, type=_CASE, metavar="[PATHS]...")
@click.option("--out", required=True, type=FOLDER, help="folder to write")
@click.option("--bundle", type=SOURCE, help="default: the shipped one")
@click.option("--blind", is_flag=True, help="without outlines, in an order mixed over all cases")
@click.option(
    "--slices",
    type=click.Choice(["scored", "all"]),
    default="scored",
    show_default=True,
    help="all: every slice with a segmented head or lesion",
)
@click.option("--skip-protocol-check", is_flag=True, help="take series without fat suppression")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="of the order"
)
@click.option("--json", "as_json", is_flag=True, help="print what became of the cases as JSON")
def make(
    *,
    cases: tuple[Path, ...],
    more: tuple[Path, ...],
    out: Path,
    bundle: Path | None,
    blind: bool,
    slices: str,
    skip_protocol_check: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Draw one picture per slice and hip, with a page to judge them on.

    Hand out the folder 'experts' (open index.html, or fill in review.csv); keep key.csv, which
    says what each picture is.
    """
    from dataclasses import asdict

    from hipscore.inference import BundleError, load_segmenter
    from hiptrain import review as reviewing

    if not cases + more:
        raise click.UsageError("name at least one DICOM file, folder or archive with --cases")
    try:
        segmenter = load_segmenter(bundle)
        series = reviewing.sources(cases + more)
        with click.progressbar(length=len(series), label="drawing", hidden=as_json) as bar:
            made = reviewing.make(
                series,
                segmenter,
                out,
                blind=blind,
                everything=slices == "all",
                protocol_check=not skip_protocol_check,
                seed=seed,
                done=bar.update,
            )
    except (BundleError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps([asdict(case) for case in made], indent=1))
        return
    for case in made:
        if case.reason:
            click.echo(f"case {case.name} ({case.source}): {case.reason}", err=True)
    count = sum(case.pictures for case in made)
    click.echo(f"{count} pictures of {sum(bool(case.pictures) for case in made)} cases")
    click.echo(f"hand out {out / 'experts'}; keep {out / 'key.csv'}")


@review.command()
@click.option("--sheet", multiple=True, type=FILE, help="review.csv of an expert, filled in")
@click.argument("more", nargs=-1, type=FILE, metavar="[SHEETS]...")
@click.option("--key", required=True, type=FILE, help="key.csv of 'hiptrain review make'")
@click.option(
    "--min-area",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="mm²; a smaller outline is no mark",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="also write the JSON")
@click.option("--json", "as_json", is_flag=True, help="print the figures as JSON")
def tally(
    *,
    sheet: tuple[Path, ...],
    more: tuple[Path, ...],
    key: Path,
    min_area: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Sensitivity and specificity of the marks by expert, and how the experts agree."""
    from hiptrain import review_tally as counting

    if not sheet + more:
        raise click.UsageError("name at least one sheet with --sheet")
    try:
        pictures = counting.read_key(key)
        sheets = counting.read_sheets(sheet + more, pictures)
        counted, pairs = counting.tally(sheets, pictures, min_mm2=min_area)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    cases = len({row["case"] for row in pictures.values()})
    text = json.dumps(counting.as_json(counted, pairs, cases), indent=1)
    if out is not None:
        try:
            out.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"{out} cannot be written: {error}") from error
    click.echo(text if as_json else counting.markdown(counted, pairs, cases), nl=as_json)
