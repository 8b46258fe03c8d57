"""The command line. ``hipscore COMMAND --help`` explains each command.

Commands are imported when they are called: the command line answers at once, and a
process loads only what it runs.
"""

from __future__ import annotations

import errno
import importlib
import sys
from pathlib import Path
from typing import Any

import click

from hipscore import __version__

#: command: (module, attribute, one line for the list)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("demo", "demo", "Score a synthetic study through the whole service."),
    "up": ("up", "up", "Run all processes: listener, workers, reaper, API."),
    "score": ("score", "score", "Score DICOM files without database or network."),
    "send": ("send", "send", "Send DICOM files to a peer by C-STORE."),
    "phantom": ("phantom", "phantom", "Write a synthetic hip STIR study with known truth."),
    "why": ("why", "why", "Tell what happened to a series or study, and why."),
    "jobs": ("inspect", "jobs", "List analyses and what is undelivered."),
    "retry": ("inspect", "retry", "Queue a failed analysis or delivery again."),
    "workers": ("workers", "workers", "List the workers that live, and whether they are warm."),
    "doctor": ("doctor", "doctor", "Examine the installation and every peer."),
    "withdraw": ("withdraw", "withdraw", "Withdraw a result, here and wherever it went."),
    "backup": ("backup", "backup", "Write database, files and settings into one archive."),
    "restore": ("backup", "restore", "Make database and files of an archive, or check one."),
    "purge": ("purge", "purge", "Delete files that nothing needs any more."),
    "listen": ("services", "listen", "Run the DICOM listener."),
    "work": ("services", "work", "Run a worker."),
    "beat": ("services", "beat", "Run the reaper: nothing waits or is lost for ever."),
    "serve": ("services", "serve", "Run the REST API."),
    "keys": ("keys", "keys", "Make, list and revoke keys for the API and the pages."),
    "audit": ("audit", "audit", "Show who looked at what, and who did what."),
    "rules": ("rules", "rules", "Show and test the rules: what is scored, what goes where."),
    "config": ("maintain", "config", "Print the effective settings, secrets masked."),
    "db": ("maintain", "db", "Create or update the database schema."),
    "bundle": ("maintain", "bundle", "Inspect and verify model bundles."),
}


class _Commands(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what fails around it, not in it, is one line and no traceback."""
        from hipscore.domain import Transient

        try:
            return super().invoke(ctx)
        except Transient as error:
            raise click.ClickException(f"{error}; try again when that is mended") from error
        except OSError as error:
            # the reader of our output is gone, as in "hipscore jobs | head": click ends quietly
            if error.errno == errno.EPIPE:
                raise
            raise click.ClickException(_os_line(error)) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        loaded = importlib.import_module(f"hipscore.cli.{module}")
        command: click.Command = getattr(loaded, attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any of them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


def _os_line(error: OSError) -> str:
    """Say what the operating system refused, and which setting leads there."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return reason
    from hipscore.settings import Settings

    try:
        data = Settings().data_dir.absolute()
    except (OSError, ValueError):  # a wrong setting is not what failed here
        return f"{error.filename}: {reason}"
    path = Path(error.filename).absolute()
    # making the directory fails on itself, on what is above it, or on what is in it
    ours = path.is_relative_to(data) or data.is_relative_to(path)
    return f"{path}: {reason}{'; check HIPSCORE_DATA_DIR' if ours else ''}"


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, prog_name="hipscore")
def group() -> None:
    """Score hip inflammation on coronal STIR MRI.

    For research, not for clinical decisions. Settings come from HIPSCORE_* in the
    environment and the TOML file named by HIPSCORE_CONFIG; see "hipscore config".
    """


def main() -> None:
    """Entry point of the ``hipscore`` script: exits 0, 1 (it failed) or 2 (wrong usage)."""
    sys.exit(group.main(prog_name="hipscore"))
