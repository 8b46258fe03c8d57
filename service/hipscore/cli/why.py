"""``why``: what happened to a series or study, on one screen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from hipscore.cli.common import load_settings, print_json, ready_database
from hipscore.cli.digest import Line, condensed, every
from hipscore.store import account
from hipscore.store import engine as database
from hipscore.store.account import Account, Found
from hipscore.store.tables import Event
from hipscore.store.why import Verdict, explain

WIDTH = 100
SCREEN = 24
#: the ledger gets this many lines even where the verdicts fill the screen
LEAST = 4


@click.command()
@click.argument("uid")
@click.option("--all", "everything", is_flag=True, help="Print every line of the ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: verdict and whole ledger.")
def why(uid: str, *, everything: bool, as_json: bool) -> None:
    """Tell what happened to a series or study, and why.

    UID is that of a study, a series, an image, or of a SEG or SR that was made. Says what is the
    matter, who has to do what next, and the ledger in short. Times are UTC.
    """
    settings, now = load_settings(), datetime.now(UTC)
    with (
        ready_database(settings) as engine,
        database.transaction(database.readers(engine)) as session,
    ):
        found = account.find(uid, session=session)
        around = account.surroundings(
            quiet_seconds=settings.quiet_seconds,
            explains=settings.explain_unmatched,
            now=now,
            session=session,
        )
    if not found.accounts:
        msg = f"nothing is known of {uid}; is it the UID of a study, a series or an image?"
        raise click.ClickException(msg)
    verdicts = [explain(each, around) for each in found.accounts]
    if as_json:
        print_json(_as_json(uid, found, verdicts))
    else:
        click.echo("\n".join(screen(found, verdicts, everything=everything)))


def screen(found: Found, verdicts: Sequence[Verdict], *, everything: bool = False) -> list[str]:
    """The lines to print: verdicts, what next, the ledger as far as the screen allows."""
    lines = [] if found.about is None else _wrapped(found.about, "")
    for verdict in verdicts:
        lines += _wrapped(f"series {verdict.series_instance_uid}", "")
        for sentence in verdict.sentences:
            lines += _wrapped(sentence, "  ")
    advice = list(dict.fromkeys(each for verdict in verdicts for each in verdict.what_next))
    if len(advice) > 1 and "nothing to do" in advice:
        advice.remove("nothing to do")
    for number, each in enumerate(advice):
        lines += _wrapped(each, "next: " if number == 0 else "      ")
    lines.append("ledger (UTC):")
    told = [
        _line(each) for one in found.accounts for each in (every if everything else condensed)(one)
    ]
    room = max(LEAST, SCREEN - len(lines))
    if everything or len(told) <= room:
        return lines + told
    first = max(1, (room - 1) // 3)
    last = room - 1 - first
    left_out = f"  … {len(told) - first - last} more lines; all of them: hipscore why UID --all"
    return [*lines, *told[:first], left_out, *told[-last:]]


def _line(line: Line) -> str:
    often = "" if line.count == 1 else f" ×{line.count}, until {line.until:%m-%d %H:%M:%S}"
    text = f"  {line.at:%m-%d %H:%M:%S}  {line.about:<9}  {line.text}"
    room = WIDTH - len(often)
    return (text if len(text) <= room else f"{text[: room - 1]}…") + often


def _wrapped(text: str, before: str) -> list[str]:
    behind = " " * (len(before) + 2)
    return textwrap.wrap(
        text, WIDTH, initial_indent=before, subsequent_indent=behind, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _as_json(uid: str, found: Found, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "uid": uid,
        "about": found.about,
        "verdict": [
            {
                "series_instance_uid": verdict.series_instance_uid,
                "sentences": verdict.sentences,
                "what_next": verdict.what_next,
            }
            for verdict in verdicts
        ],
        "events": [_event(event) for event in _by_id(found.accounts)],
    }


def _by_id(accounts: Sequence[Account]) -> list[Event]:
    return sorted((event for one in accounts for event in one.events), key=lambda e: e.id)


def _event(event: Event) -> dict[str, Any]:
    return {
        "at": event.at.astimezone(UTC).isoformat(),
        "series": event.series_id,
        "job": event.job_id,
        "delivery": event.delivery_id,
        "what": event.what,
        "from": event.from_state,
        "to": event.to_state,
        "detail": event.detail,
    }
