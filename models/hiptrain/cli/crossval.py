"""``crossval``: the networks compared by patient-level cross-validation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hiptrain.cli.common import FOLDER, data_option
from hiptrain.cli.fit import COUNT, NETWORKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hiptrain.crossval import Plan
    from hiptrain.dataset import CaseFile

_CLOCK = "processor time, one thread"
_VARIANTS = {"both": (False, True), "with": (True,), "without": (False,)}


class _Several(click.Option):
    """An option that takes all words up to the next option: ``--networks unet hrnet``."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        for name in self.opts:
            option = parser._long_opt[name]  # noqa: SLF001 - click has no public way
            process = option.process

            def several(value: str, state: Any, process: Any = process) -> None:
                process(value, state)
                while state.rargs and not state.rargs[0].startswith("-"):
                    process(state.rargs.pop(0), state)

            option.process = several


@click.command()
@data_option
@click.option("--out", required=True, type=FOLDER, help="results, tables and the box plot")
@click.option(
    "--networks",
    cls=_Several,
    multiple=True,
    type=click.Choice(NETWORKS),
    default=NETWORKS,
    show_default=True,
    help="one or several; the first is what the others are tested against",
)
@click.option("--folds", default=5, show_default=True, type=click.IntRange(min=2))
@click.option("--point-rend", type=click.Choice(list(_VARIANTS)), default="both", show_default=True)
@click.option(
    "--steps",
    default=300,
    show_default=True,
    type=click.IntRange(min=2),
    help="of every variant; 60 % of them are common to both",
)
@click.option("--batch", default=16, show_default=True, type=COUNT)
@click.option("--width", default=16, show_default=True, type=COUNT)
@click.option(
    "--coarse",
    default=1,
    show_default=True,
    type=click.IntRange(1, 2),
    help="2: pictures of half the resolution, a quarter of the time",
)
@click.option("--rate", default=3e-3, show_default=True, help="highest learning rate")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0))
@click.option("--jobs", default=2, show_default=True, type=COUNT, help="processes of one thread")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True
)
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print crossval.json instead of tables")
def crossval(
    *,
    data: tuple[Path, ...],
    out: Path,
    networks: tuple[str, ...],
    folds: int,
    point_rend: str,
    steps: int,
    batch: int,
    width: int,
    coarse: int,
    rate: float,
    seed: int,
    jobs: int,
    device: str,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Compare networks on patient-level folds, with and without PointRend.

    Results are files in the --out folder: what is there already, made by the same recipe
    from the same data, is not made again.
    """
    import hiptrain.crossval as crossing
    from hiptrain import crossval_report as reporting
    from hiptrain.dataset import list_cases

    plan = crossing.Plan(
        networks=tuple(dict.fromkeys(networks)),  # type: ignore[arg-type]
        variants=_VARIANTS[point_rend],
        folds=folds,
        steps=steps,
        batch=batch,
        width=width,
        coarse=coarse,
        rate=rate,
        seed=seed,
        device=device,  # type: ignore[arg-type]
    )
    try:
        cases = list_cases(data)
        todo = crossing.units(plan, cases, out)
        length = sum(unit.steps(plan) for unit in todo)
        # the bar goes where it does not spoil --json
        with click.progressbar(length=length, label="training", file=sys.stderr) as bar:
            crossing.run(
                plan,
                todo,
                out,
                jobs=jobs,
                tell=lambda text: click.echo(f"\n{text}", err=True),
                step_done=bar.update,
            )
        report = crossing.described(plan, cases)
        report["cost"] = _cost(plan, out, cases)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    report["results"] = crossing.results(plan, out)
    text = json.dumps(report, indent=1)
    (out / "crossval.json").write_text(text + "\n", encoding="utf-8")
    reporting.plot(plan, report["results"], out / "crossval.png")
    tables = reporting.tables(plan, report)
    click.echo(text if as_json else "\n\n".join(table.text() for table in tables))
    if markdown is not None:
        markdown.write_text("\n\n".join(t.markdown() for t in tables) + "\n", encoding="utf-8")
    click.echo(f"\ncrossval.json and crossval.png in {out}", err=True)


def _cost(plan: Plan, out: Path, cases: Sequence[CaseFile]) -> list[dict[str, Any]]:
    """Latency of every variant, measured once when nothing else runs, and then kept."""
    import numpy as np

    from hiptrain import crossval_report as reporting
    from hiptrain.dataset import read_crops
    from hiptrain.split import TESTABLE

    path = out / "cost.json"
    wanted = [[network, variant] for network in plan.networks for variant in plan.variants]
    if path.exists():
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        held = [[each["network"], each["point_rend"]] for each in saved["cost"]]
        if saved.get("clock") == _CLOCK and saved["width"] == plan.width and held == wanted:
            return list(saved["cost"])
    sample = read_crops([case for case in cases if case.kind in TESTABLE][:8])
    crops = int(np.median(np.unique(sample.hips, return_counts=True)[1]))
    with click.progressbar(length=len(wanted), label="timing", file=sys.stderr) as bar:
        found = reporting.cost(plan, crops, bar.update)
    content = {"clock": _CLOCK, "width": plan.width, "cost": found}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return found
