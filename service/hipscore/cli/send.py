"""``send``: a storage SCU for trying things and for feeding folders of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from hipscore.addresses import Peer
from hipscore.cli.common import files_in, load_settings, progress, start


class PeerType(click.ParamType[Peer]):
    """A peer on the command line, ``AET@HOST:PORT``."""

    name = "AET@HOST:PORT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Peer:
        try:
            return value if isinstance(value, Peer) else Peer.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--to", "peer", required=True, type=PeerType(), help="Where to send them.")
@click.option("--from", "calling", help="Our AE title in this association (HIPSCORE_AE_TITLE).")
def send(paths: Sequence[Path], *, peer: Peer, calling: str | None) -> None:
    """Send DICOM files to a peer by C-STORE, over one association.

    Exits 1 if any file was not stored; each of these is named with the peer's answer.
    """
    from pydicom.misc import is_dicom

    from hipscore import pacs

    settings = load_settings()
    start(settings)
    everything = files_in(paths)
    files = [path for path in everything if is_dicom(path)]
    if not files:
        msg = f"no DICOM file in {', '.join(map(str, paths))}"
        raise click.ClickException(msg)
    try:
        sending = pacs.send_files(peer, files, calling_aet=calling or settings.ae_title)
        failures = [
            (path, outcome)
            for path, outcome in progress(sending, f"sending to {peer}", len(files))
            if not outcome.delivered
        ]
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if failures and all(outcome.unreachable for _, outcome in failures):
        msg = f"{failures[0][1].text}; {len(files) - len(failures)} of {len(files)} files sent"
        raise click.ClickException(msg)
    for path, outcome in failures:
        said = f": {outcome.comment}" if outcome.comment else ""
        click.echo(f"{path}: {outcome.text}{said}", err=True)
    click.echo(f"{len(files) - len(failures)} of {len(files)} files stored by {peer}")
    if len(everything) > len(files):
        left_out = ", ".join(path.name for path in sorted(set(everything) - set(files))[:3])
        click.echo(f"not DICOM, left out: {left_out}", err=True)
    if failures:
        raise click.exceptions.Exit(1)
