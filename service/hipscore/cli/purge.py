"""``purge``: delete files that nothing needs any more, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from hipscore.cli.audit import record
from hipscore.cli.common import load_settings, print_json, progress, ready_database, start, table
from hipscore.settings import Settings

if TYPE_CHECKING:  # needed for the work, not for --help
    from hipscore.store.retention import Lot
    from hipscore.worker import Bench

_MB = 1024 * 1024


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option(
    "--images-older-than",
    "images_days",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Images not needed for so long; default: HIPSCORE_KEEP_IMAGES_DAYS.",
)
@click.option(
    "--results-older-than",
    "results_days",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Files of results delivered so long ago; default: HIPSCORE_KEEP_RESULTS_DAYS.",
)
@click.option("--failed", is_flag=True, help="Also images of failed analyses: no retry any more.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; needs --yes or --dry-run.")
def purge(
    *,
    dry_run: bool,
    images_days: float | None,
    results_days: float | None,
    failed: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete images and result files that nothing needs any more.

    Never what is open, unfinished or undelivered, nor what came in the last 10 minutes. Rows,
    scores and the ledger of old studies go only where HIPSCORE_KEEP_ROWS_DAYS says so. The
    beat does the same every hour by the settings.
    """
    if as_json and not (yes or dry_run):
        msg = "--json prints no question; add --yes or --dry-run"
        raise click.UsageError(msg)
    from hipscore.store import engine as database
    from hipscore.worker import purging

    settings, now = load_settings(), datetime.now(UTC)
    with _bench(settings) as at:
        rules = purging.by_hand(
            settings, now=now, images_days=images_days, results_days=results_days, failed=failed
        )
        lots = purging.plan(rules, at)
        left = purging.sweep(rules, at, now=now, dry=True)
        rows = [_row(lot) for lot in lots]
        if not as_json:
            _show(rows, left.files, left.size)
        gone = purging.Gone()
        if not dry_run and (lots or left.files):
            if not yes:
                rows_too = any(lot.what.value == "rows" for lot in lots)
                what = "files, and all rows of these studies" if rows_too else "files"
                click.confirm(f"Delete these {what}?", abort=True)
            with database.transaction(at.sessions) as session:
                files = sum(lot.files for lot in lots) + left.files
                record("purge", detail={"files": files}, now=now, session=session)
            for lot in progress(lots, "purging"):
                gone += purging.take(lot, rules, at, now=now)
            gone += purging.sweep(rules, at, now=now)
    if as_json:
        leftovers = {"files": left.files, "bytes": left.size}
        deleted = {"files": gone.files, "bytes": gone.size}
        print_json({"lots": rows, "leftovers": leftovers, "deleted": deleted})
    elif not dry_run:
        click.echo(f"deleted {gone.files} files, {gone.size / _MB:.1f} MB")


@contextmanager
def _bench(settings: Settings) -> Iterator[Bench]:
    """Database and spool, closed at the end."""
    from hipscore.worker import bench

    start(settings)
    with ready_database(settings):
        at = bench(settings)
        try:
            yield at
        finally:
            at.sessions.kw["bind"].dispose()


def _row(lot: Lot) -> dict[str, Any]:
    return {
        "what": lot.what.value,
        "series_instance_uid": lot.series_instance_uid,
        "job": lot.job_id,
        "files": lot.files,
        "bytes": lot.size,
        "needed_until": lot.since.isoformat(timespec="seconds"),
    }


def _show(rows: list[dict[str, Any]], files: int, size: int) -> None:
    cells = [
        (
            row["what"],
            row["series_instance_uid"],
            row["files"],
            f"{row['bytes'] / _MB:.1f}",
            row["needed_until"][:16].replace("T", " "),
        )
        for row in rows
    ]
    if files:
        cells.append(("leftovers", "files that no row needs", files, f"{size / _MB:.1f}", ""))
    if cells:
        click.echo(table(cells, ("what", "series", "files", "MB", "needed until (UTC)")))
    else:
        click.echo("nothing to purge")
