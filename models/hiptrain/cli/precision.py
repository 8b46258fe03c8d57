"""``precision``: what bf16 and int8 do to the result of a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hipscore.domain import RESEARCH_USE
from hiptrain.cli.common import SOURCE, chosen, source_options

if TYPE_CHECKING:
    from hiptrain.anatomy import Anatomy
    from hiptrain.precision import Running

_TARGET = click.Path(dir_okay=False, path_type=Path)
_COUNT = click.IntRange(min=0)


@click.command()
@click.argument("bundle", type=SOURCE)
@source_options
@click.option(
    "--series",
    multiple=True,
    required=True,
    help="T1 series of --source, none of which trained the bundle (may be repeated)",
)
@click.option("--draws", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--phantoms", default=4, show_default=True, type=_COUNT)
@click.option("--refusals", default=0, show_default=True, type=_COUNT, help="series without hips")
@click.option("--seed", default=20_000, show_default=True, type=_COUNT)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--json", "target", type=_TARGET, help="the figures")
@click.option("--markdown", type=_TARGET, help="the tables")
def precision(
    *,
    bundle: Path,
    source: Path,
    heads: Path,
    series: tuple[str, ...],
    draws: int,
    phantoms: int,
    refusals: int,
    seed: int,
    threads: int,
    target: Path | None,
    markdown: Path | None,
) -> None:
    """Run BUNDLE in every precision and runtime over the same series of known truth.

    The series are those of 'hiptrain evaluate' with the same options. fp32 in onnxruntime is
    what the others are compared with.
    """
    from hiptrain import evaluate as measuring
    from hiptrain import precision as comparing
    from hiptrain.anatomy import load, read_heads

    spheres = read_heads(heads)
    try:
        running = comparing.start(bundle, threads=threads)
        anatomies = [
            (name, load(path, spheres)[1]) for name, path in chosen(source, series).items()
        ]
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    groups = {
        "semi-real": measuring.semireal_cases(anatomies, draws=draws, seed=seed),
        "phantom": measuring.phantom_cases(phantoms, seed=seed),
    }
    content: dict[str, object] = {"remark": RESEARCH_USE}
    shown = []
    for name, cases in groups.items():
        if cases:
            with click.progressbar(length=len(cases), label=name) as bar:
                answers = comparing.compare(cases, running, done=bar.update)
            content[name] = comparing.summary(answers)
            shown += comparing.tables(name, comparing.summary(answers))
    if refusals:
        bodies = [anatomy for _, anatomy in anatomies]
        content["refusals"] = refused = _refused(refusals, seed, bodies, running)
        shown.append(comparing.refusal_table(refused))
    for each in shown:
        click.echo(f"\n{each.text()}")
    if target is not None:
        target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if markdown is not None:
        text = "\n\n".join(each.markdown() for each in shown)
        markdown.write_text(f"{text}\n", encoding="utf-8")


def _refused(
    count: int, seed: int, anatomies: list[Anatomy], running: Mapping[str, Running]
) -> dict[str, dict[str, int]]:
    from hiptrain import precision as comparing
    from hiptrain import strangers

    series = (strangers.case(number, seed, anatomies=anatomies) for number in range(count))
    with click.progressbar(length=count, label="series without hips") as bar:
        return comparing.refusals(series, running, done=bar.update)
