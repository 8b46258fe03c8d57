"""Command line of the training: ``hiptrain COMMAND``, one module a command."""

from __future__ import annotations

import click

from hiptrain.cli.evaluate import evaluate
from hiptrain.cli.export import export
from hiptrain.cli.fit import fit
from hiptrain.cli.synthesise import synthesise


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make training data, train and measure the networks of hipscore."""


for command in (synthesise, fit, evaluate, export):
    main.add_command(command)
