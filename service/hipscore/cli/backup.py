"""``backup``, ``restore``: everything in one file, and everything back on an empty machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hipscore.cli.common import (
    load_settings,
    only_one,
    print_json,
    progress,
    ready_database,
    start,
)
from hipscore.cli.maintain import effective
from hipscore.settings import Settings

if TYPE_CHECKING:  # needed for the work, not for --help
    from hipscore.archive import Manifest

_RESTORED = "restored"


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--without-lost",
    is_flag=True,
    help="Go on without files that are missing or damaged in the spool already.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def backup(file: Path, *, force: bool, without_lost: bool, as_json: bool) -> None:
    """Write database, images, results and settings into one archive.

    The service may run. The archive has the database of one moment and every file that it refers
    to; nothing is purged meanwhile. It is readable for this user only: it holds what patients
    are identified by. Passwords are not in it. End its name with .gz to compress it. The broker
    is left out: it holds nothing that the database does not say.
    """
    from hipscore import archive
    from hipscore.spool import Spool

    settings = load_settings()
    start(settings)
    with ready_database(settings, any_schema=True):
        pass
    try:
        made = archive.backup(
            file.absolute(),
            url=settings.database,
            spool=Spool(settings.data_dir / "spool"),
            extras=_extras(settings),
            now=datetime.now(UTC),
            overwrite=force,
            without_lost=without_lost,
            progress=lambda files, count: progress(files, "files", count),
        )
    except archive.ArchiveError as error:
        raise click.ClickException(str(error)) from error
    _say(made, file, as_json=as_json, done="backed up")
    if made.lost:
        click.echo(f"{len(made.lost)} files were lost before and are not in it", err=True)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--check", is_flag=True, help="Only read it to its end and compare every digest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def restore(file: Path, *, check: bool, as_json: bool) -> None:
    """Make the database and the files of an archive on a machine that has none.

    HIPSCORE_DATA_DIR and HIPSCORE_DATABASE_URL say where; the database has to be empty, and of
    the kind that was backed up. Every file is compared with its digest before the database
    refers to it. The settings of then are laid into the folder "restored" of the data directory,
    and are not put into force.
    """
    from hipscore import archive
    from hipscore.spool import Spool
    from hipscore.store.engine import judged

    try:
        if check:
            found = archive.check(file, progress=_shown)
            _say(found, file, as_json=as_json, done="intact")
            return
        settings = load_settings()
        start(settings)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with only_one(settings.data_dir):
            found = archive.restore(
                file,
                url=settings.database,
                spool=Spool(settings.data_dir / "spool"),
                extras=settings.data_dir / _RESTORED,
                progress=_shown,
            )
    except archive.ArchiveError as error:
        raise click.ClickException(str(error)) from error
    _say(found, file, as_json=as_json, done="restored from")
    if not as_json:
        click.echo(f"the settings of then lie in {settings.data_dir / _RESTORED}")
        schema = judged(found.revision)
        if not schema.current:
            click.echo(f"the schema is at {found.revision}; run: hipscore db upgrade")


def _extras(settings: Settings) -> dict[str, bytes]:
    kept = json.dumps(effective(settings), indent=2, default=str).encode() + b"\n"
    found = {"settings.json": kept}
    if settings.rules is not None:
        found["rules.toml"] = settings.rules.read_bytes()
    return found


def _shown(names: Iterable[str], manifest: Manifest) -> Iterable[str]:
    return progress(names, "files", len(manifest.members))


def _say(manifest: Manifest, file: Path, *, as_json: bool, done: str) -> None:
    if as_json:
        facts: dict[str, Any] = manifest.model_dump(mode="json", exclude={"members"})
        print_json({**facts, "file": str(file), "files": manifest.files, "bytes": manifest.size})
    else:
        click.echo(f"{done} {file}: {manifest.summary}")
