"""The command line. ``hipscore COMMAND --help`` explains each command.

Commands are imported when they are called: the command line answers at once, and a
process loads only what it runs.
"""

from __future__ import annotations

import importlib
import sys

import click

from hipscore import __version__

#: command: (module, attribute, one line for the list)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("demo", "demo", "Score a synthetic study through the whole service."),
    "up": ("up", "up", "Run all processes: listener, worker, beat, API."),
    "score": ("score", "score", "Score DICOM files without database or network."),
    "send": ("send", "send", "Send DICOM files to a peer by C-STORE."),
    "phantom": ("phantom", "phantom", "Write a synthetic hip STIR study with known truth."),
    "why": ("inspect", "why", "Tell what happened to a series or study, and why."),
    "jobs": ("inspect", "jobs", "List analyses."),
    "retry": ("inspect", "retry", "Queue a failed analysis or delivery again."),
    "listen": ("services", "listen", "Run the DICOM listener."),
    "work": ("services", "work", "Run a worker."),
    "beat": ("services", "beat", "Run the clock that wakes the reaper."),
    "serve": ("services", "serve", "Run the REST API."),
    "config": ("maintain", "config", "Print the effective settings, secrets masked."),
    "db": ("maintain", "db", "Create or update the database schema."),
    "bundle": ("maintain", "bundle", "Inspect and verify model bundles."),
}


class _Commands(click.Group):
    """A group that imports a command's module when the command is asked for."""

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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hipscore")
def group() -> None:
    """Score hip inflammation on coronal STIR MRI.

    For research, not for clinical decisions. Settings come from HIPSCORE_* in the
    environment and the TOML file named by HIPSCORE_CONFIG; see "hipscore config".
    """


def main() -> None:
    """Entry point of the ``hipscore`` script: exits 0, 1 (it failed) or 2 (wrong usage)."""
    sys.exit(group.main(prog_name="hipscore"))
