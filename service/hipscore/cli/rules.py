"""``rules``: which series are scored and where results go; and why, for files at hand."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from pydicom.dataset import Dataset

from hipscore.attributes import text
from hipscore.cli.common import files_in, load_settings, print_json, progress
from hipscore.domain import ArtifactKind, ReceivedInstance
from hipscore.header import Unreadable, read_header, read_leading
from hipscore.keeping.rules import RulesError, destinations, load_rules
from hipscore.routing import (
    NO_RULE,
    Action,
    Came,
    Decision,
    Rules,
    decide,
    receiver,
    travels,
    wanted,
)
from hipscore.settings import Settings

_KINDS = (
    ArtifactKind.SEG,
    ArtifactKind.SR,
    ArtifactKind.SC,
    ArtifactKind.PDF,
    ArtifactKind.ORU,
)
_RULES = click.option(
    "--rules",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Rules file (HIPSCORE_RULES).",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@dataclass(kw_only=True)
class _Found:
    """The images of one series, and the header of the first of them."""

    header: Dataset
    images: dict[str, ReceivedInstance] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        return next(iter(self.images.values())).series_instance_uid

    @property
    def study(self) -> str:
        return next(iter(self.images.values())).study_instance_uid


@click.group()
def rules() -> None:
    """Show and test the rules: which series are scored, and which results go where."""


@rules.command()
@_RULES
@_JSON
def show(file: Path | None, *, as_json: bool) -> None:
    """Show the rules and destinations in force."""
    settings, made = _load(file)
    if as_json:
        print_json(_shown(settings, made))
        return
    source = settings.rules if made.rules else "built in; HIPSCORE_RULES names no file with rules"
    lines = [f"rules, the first that matches decides ({source}):"]
    lines.append("  localizer → ignored: all images are scouts (always)")
    for rule in made.in_force:
        goes = "" if rule.destinations is None else f"; only to {_names(made, rule.destinations)}"
        lines.append(f"  {rule.name} → {_done(rule.action)}{goes}")
        lines += [f"      {each.text}" for each in rule.conditions]
    explained = "one report says why" if settings.explain_unmatched else "nothing is sent"
    lines.append(f"  otherwise → ignored (no_rule); where a whole study is: {explained}")
    lines.append("destinations:")
    goes_to = destinations(settings, made)
    for each in goes_to:
        name = receiver(made, str(each)).name
        lines.append(f"  {name + ' = ' if name else ''}{each}: {_kinds(made, str(each))}")
    if not goes_to:
        lines.append("  none: results go nowhere; set HIPSCORE_DESTINATIONS or a [[destination]]")
    click.echo("\n".join(lines))


@rules.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@_RULES
@click.option("--from", "calling", default="", help="AE title that they come from.")
@click.option("--to", "called", default="", help="AE title that they are sent to.")
@click.option("--peer", default="", help="Address that they come from.")
@_JSON
def test(
    paths: Sequence[Path],
    *,
    file: Path | None,
    calling: str,
    called: str,
    peer: str,
    as_json: bool,
) -> None:
    """Tell which rule matches DICOM files, and why.

    PATHS are files or folders; images are grouped by series, and nothing is scored or sent.
    As in the service, the first image of a series decides (here by file name). Exits 1 when
    there is no DICOM image or the rules cannot be read.
    """
    settings, made = _load(file)
    _check_address(peer)
    came = Came(calling_aet=calling, called_aet=called or settings.ae_title, peer=peer)
    found, left_out = _series_in(paths)
    if not found:
        msg = f"no DICOM image in {', '.join(map(str, paths))} ({left_out} other files)"
        raise click.ClickException(msg)
    judged = [
        (each, decide(made, each.header, tuple(each.images.values()), came)) for each in found
    ]
    if as_json:
        print_json([_as_json(each, decision, settings, made, came) for each, decision in judged])
    else:
        for each, decision in judged:
            click.echo("\n".join(_told(each, decision, settings, made, came)))
        for line in _unmatched(judged, settings):
            click.echo(line)
    if left_out:
        click.echo(f"{left_out} files are no DICOM images and were left out", err=True)


def _load(file: Path | None) -> tuple[Settings, Rules]:
    settings = load_settings(rules=file)
    try:
        return settings, load_rules(settings)
    except RulesError as error:
        raise click.ClickException("\n".join(error.mistakes)) from error


def _check_address(peer: str) -> None:
    try:
        if peer:
            ipaddress.ip_address(peer)
    except ValueError as error:
        msg = f"{peer!r} is no address, such as 10.0.0.7"
        raise click.BadParameter(msg, param_hint="--peer") from error


def _series_in(paths: Sequence[Path]) -> tuple[list[_Found], int]:
    """Group the files by series, in order of UID. Returns the series and the number left out."""
    found: dict[tuple[str, str], _Found] = {}
    left_out = 0
    for path in progress(files_in(paths), "reading"):
        try:
            data = path.read_bytes()
            image = read_header(data)
            key = (image.study_instance_uid, image.series_instance_uid)
            if key not in found:
                found[key] = _Found(header=read_leading(data))
        except (OSError, Unreadable):
            left_out += 1
            continue
        found[key].images.setdefault(image.sop_instance_uid, image)
    return [each for _, each in sorted(found.items())], left_out


# --- words ---------------------------------------------------------------------------------


def _done(action: Action) -> str:
    return "scored" if action is Action.SCORE else "ignored"


def _verdict(decision: Decision) -> str:
    if decision.matched:
        return f"scored by the rule {decision.rule}"
    return (
        "ignored: no rule matches"
        if decision.rule == NO_RULE
        else f"ignored by the rule {decision.rule}"
    )


def _told(
    found: _Found, decision: Decision, settings: Settings, made: Rules, came: Came
) -> list[str]:
    """The screen lines of one series: the verdict, every rule that was tried, where it goes."""
    described = text(found.header, "SeriesDescription")
    count = len(found.images)
    images = f"{count} image" if count == 1 else f"{count} images"
    about = f"{images}, {described}" if described else images
    lines = [f"series {found.uid} ({about})", f"  {_verdict(decision)}"]
    for trial in decision.tried:
        held = sum(check.holds for check in trial.checks)
        matched = "matches" if trial.holds else f"{held} of {len(trial.checks)} conditions hold"
        lines.append(f"    rule {trial.rule.name} ({trial.rule.action}): {matched}")
        lines += [
            f"      {'yes' if check.holds else 'NO '}  {check.text}; found: {check.found}"
            for check in trial.checks
        ]
    if decision.matched:
        goes = _goes(decision, settings, made, came)
        lines += [
            f"    results to {each}: {_listed(kinds, made, each)}" for each, kinds in goes.items()
        ]
        if not goes:
            lines.append("    results to nobody: no destination takes them")
    return lines


def _unmatched(judged: Sequence[tuple[_Found, Decision]], settings: Settings) -> list[str]:
    """What becomes of studies in which no series matches."""
    lines = []
    for study in sorted({found.study for found, _ in judged}):
        own = [(found, decision) for found, decision in judged if found.study == study]
        left = [(found, decision) for found, decision in own if decision.rule == NO_RULE]
        if any(decision.matched for _, decision in own) or not left:
            continue
        if settings.explain_unmatched:
            nearest, _ = min(left, key=lambda one: (-one[1].nearness, -len(one[0].images)))
            lines.append(
                f"study {study}: no series matches; if no other comes, the report on series "
                f"{nearest.uid} says why (HIPSCORE_EXPLAIN_UNMATCHED)"
            )
        else:
            lines.append(f"study {study}: no series matches, and nothing is sent")
    return lines


def _goes(
    decision: Decision, settings: Settings, made: Rules, came: Came
) -> dict[str, list[ArtifactKind]]:
    """Results by destination, where there are any."""
    if not decision.matched:
        return {}
    kinds = {
        each: [kind for kind in _KINDS if travels(made, decision.rule, each, kind, came=came)]
        for each in map(str, destinations(settings, made))
    }
    return {each: found for each, found in kinds.items() if found}


def _kinds(made: Rules, destination: str) -> str:
    """The kinds of results that a destination gets."""
    return _listed(
        [kind for kind in _KINDS if kind in wanted(made, destination)], made, destination
    )


def _listed(kinds: Sequence[ArtifactKind], made: Rules, destination: str) -> str:
    auto = " (sc and pdf where it refuses them)" if receiver(made, destination).auto else ""
    return ", ".join(kind.value for kind in kinds) + auto


def _names(made: Rules, addresses: frozenset[str]) -> str:
    """Destinations by the names that the file gives them."""
    return ", ".join(sorted(receiver(made, each).name or each for each in addresses))


# --- JSON ----------------------------------------------------------------------------------


def _as_json(
    found: _Found, decision: Decision, settings: Settings, made: Rules, came: Came
) -> dict[str, Any]:
    return {
        "study_instance_uid": found.study,
        "series_instance_uid": found.uid,
        "images": len(found.images),
        "scored": decision.matched,
        "rule": decision.rule,
        "tried": [
            {
                "rule": trial.rule.name,
                "action": trial.rule.action.value,
                "matches": trial.holds,
                "conditions": [
                    {"condition": check.text, "holds": check.holds, "found": check.found}
                    for check in trial.checks
                ],
            }
            for trial in decision.tried
        ],
        "results_to": {
            each: [kind.value for kind in kinds]
            for each, kinds in _goes(decision, settings, made, came).items()
        },
    }


def _shown(settings: Settings, made: Rules) -> dict[str, Any]:
    return {
        "file": None if settings.rules is None else str(settings.rules),
        "rules": [
            {
                "name": rule.name,
                "action": rule.action.value,
                "conditions": [each.text for each in rule.conditions],
                "destinations": None if rule.destinations is None else sorted(rule.destinations),
            }
            for rule in made.in_force
        ],
        "explain_unmatched": settings.explain_unmatched,
        "destinations": [
            {
                "address": str(each),
                "name": receiver(made, str(each)).name or None,
                "artifacts": [kind.value for kind in _KINDS if kind in wanted(made, str(each))],
                "auto": receiver(made, str(each)).auto,
                "commitment": receiver(made, str(each)).commitment,
            }
            for each in destinations(settings, made)
        ],
    }
