"""``doctor``: whether everything that a result needs is there, and a study gets through."""

from __future__ import annotations

from collections.abc import Iterator

import click

from hipscore.cli.common import load_settings, print_json
from hipscore.cli.doctor.finding import Finding, Level
from hipscore.domain import RESEARCH_USE
from hipscore.settings import Settings

_SIGNS = {
    Level.GOOD: ("ok", "green"),
    Level.NOTE: ("--", None),
    Level.WARNING: ("!!", "yellow"),
    Level.FAULT: ("XX", "red"),
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--study/--no-study",
    "with_study",
    default=True,
    help="Send a synthetic study through the running service; nothing of it reaches a PACS.",
)
@click.option(
    "--timeout",
    type=click.IntRange(5),
    default=90,
    help="Seconds that the study may take.",
)
def doctor(*, as_json: bool, with_study: bool, timeout: int) -> None:
    """Examine the installation: settings, database, broker, model, disk, clock, every peer.

    Run it where hipscore runs, with the same settings. C-ECHO goes to every DICOM peer and to
    our own listener; of each peer it is shown which of our results it accepts. At the end a
    synthetic study goes through the running service, is scored, and is removed again.

    Exits 1 if anything is at fault; a warning alone does not.
    """
    settings = load_settings()
    findings = []
    for finding in _examine(settings, with_study=with_study, timeout=timeout):
        findings.append(finding)
        if not as_json:
            _show(finding)
    faults = sum(each.level is Level.FAULT for each in findings)
    warnings = sum(each.level is Level.WARNING for each in findings)
    if as_json:
        print_json({"healthy": not faults, "findings": [each.as_json() for each in findings]})
    else:
        click.echo(
            f"\n{len(findings)} findings, {faults} at fault, {warnings} to look at. {RESEARCH_USE}."
        )
    if faults:
        raise click.exceptions.Exit(1)


def _examine(settings: Settings, *, with_study: bool, timeout: int) -> Iterator[Finding]:
    from hipscore.cli.doctor import machine, peers, study

    yield from machine.findings(settings)
    yield from peers.findings(settings)
    if with_study:
        yield from study.findings(settings, timeout=timeout)


def _show(finding: Finding) -> None:
    sign, colour = _SIGNS[finding.level]
    first, *rest = finding.text.splitlines()
    click.echo(f"{click.style(f' {sign} ', fg=colour)} {finding.what:<12} {first}")
    for line in rest:
        click.echo(f"{'':<18}{line}")
    if finding.remedy:
        click.echo(f"{'':<18}-> {finding.remedy}")
