"""Command line of the training: ``hiptrain COMMAND``, one module a command."""

from __future__ import annotations

import click

from hiptrain.cli.agreement import agreement
from hiptrain.cli.annotated import annotated
from hiptrain.cli.crossval import crossval
from hiptrain.cli.evaluate import evaluate
from hiptrain.cli.export import card, export
from hiptrain.cli.fit import fit
from hiptrain.cli.precision import precision
from hiptrain.cli.prepare import prepare
from hiptrain.cli.quantise import quantise
from hiptrain.cli.review import review
from hiptrain.cli.synthesise import synthesise


class _InOrder(click.Group):
    """Lists commands in the order of the work, not of the alphabet."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make training data, train and measure the networks of hipscore."""


for command in (
    synthesise,
    prepare,
    annotated,
    fit,
    crossval,
    evaluate,
    export,
    quantise,
    precision,
    card,
    review,
    agreement,
):
    main.add_command(command)
