"""What the commands share: where the T1 series are, and errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(file_okay=False, path_type=Path)
SOURCE = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def source_options(command: Any) -> Any:
    """Add --source and --heads: where the T1 series and their heads are."""
    heads = click.option(
        "--heads", required=True, type=FILE, help="femoral_heads.csv: a sphere for every head"
    )
    source = click.option(
        "--source",
        required=True,
        type=SOURCE,
        help="folder with one folder or tar archive per coronal T1 series",
    )
    return source(heads(command))


def chosen(source: Path, series: tuple[str, ...]) -> dict[str, Path]:
    """The named series of a folder, or all of them, by name; a wrong name is one clear error."""
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


def data_option(command: Any) -> Any:
    """Add --data: one or several data sets."""
    return click.option(
        "--data",
        required=True,
        multiple=True,
        type=SOURCE,
        help="folder of 'hiptrain prepare' or 'hiptrain annotated' (may be repeated)",
    )(command)
