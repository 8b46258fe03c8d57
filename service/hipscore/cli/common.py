"""What several commands share: settings, files in, tables out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from hipscore import telemetry
from hipscore.settings import Settings

T = TypeVar("T")


def load_settings(**overrides: object) -> Settings:
    """Read the settings, or end the command with one line per wrong value.

    ``overrides`` are options of the command line; None means not given.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [
            f"HIPSCORE_{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        ]
        raise click.ClickException("; ".join(lines)) from error
    except (OSError, ValueError) as error:
        msg = f"the settings file cannot be read: {error}"
        raise click.ClickException(msg) from error
    return settings


def start(settings: Settings) -> None:
    """Set up logging for a command that works on images."""
    telemetry.configure(settings.log_level)


def files_in(paths: Iterable[Path]) -> list[Path]:
    """Every file named by ``paths`` or inside them, sorted, hidden ones left out."""
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            inside = (item for item in path.rglob("*") if item.is_file())
            found.update(item for item in inside if not item.name.startswith("."))
        else:
            found.add(path)
    return sorted(found)


def progress(items: Iterable[T], label: str, length: int | None = None) -> Iterator[T]:
    """Yield the items under a progress bar on standard error."""
    with click.progressbar(items, length, label, show_pos=True, file=sys.stderr) as bar:
        yield from bar


def print_json(value: Any) -> None:
    """Write ``value`` to standard output as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Lay out rows under a header; numbers to the right, an empty cell for None."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(len(title), *(len(row[column]) for row in cells)) if cells else len(title)
        for column, title in enumerate(header)
    ]
    numeric = [
        bool(rows)
        and all(row[column] is None or isinstance(row[column], int | float) for row in rows)
        for column in range(len(header))
    ]

    def line(values: Sequence[str]) -> str:
        parts = [
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *(line(row) for row in cells)])


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)
