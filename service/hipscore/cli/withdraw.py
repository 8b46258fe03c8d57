"""``withdraw``: retract a result, here and wherever it went."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from hipscore.cli.audit import record
from hipscore.cli.common import load_settings, ready_database

if TYPE_CHECKING:  # needed for the work, not for --help
    from sqlalchemy.orm import Session, sessionmaker

#: as hipscore.reporting.rejection.Why, which is slow to import
REASONS = ("quality", "safety", "worklist")


@click.command()
@click.argument("what", metavar="JOB|UID")
@click.option(
    "--reason",
    required=True,
    type=click.Choice(REASONS),
    help="quality: the result is wrong or useless; safety: it may harm; "
    "worklist: it stands in the wrong patient or study.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def withdraw(what: str, *, reason: str, yes: bool) -> None:
    """Withdraw a result: nobody is to use it.

    JOB is the number of an analysis; a UID is that of a study, a series, an image, or one of
    our objects. The score is answered as failed (withdrawn), what was not sent yet is
    stopped, and every destination that has any of it is told: a PACS by a note to reject it
    (Key Object Selection, IHE RAD IOCM), an HL7 receiver by a message that posts it as wrong
    (ORU^R01, OBX-11 W). An earlier result does not come back by itself, and this cannot
    be undone. The reason is one of three codes: a free text could name a patient and is not
    taken.
    """
    from hipscore.domain import Transient
    from hipscore.keeping import withdrawal
    from hipscore.lifecycle import IllegalMove
    from hipscore.reporting.rejection import Why
    from hipscore.spool import Spool
    from hipscore.store import audit
    from hipscore.store import engine as database
    from hipscore.store.moves import NotFound

    settings = load_settings()
    with ready_database(settings) as engine:
        sessions = database.sessions(engine)
        job_id = _job(what, sessions)
        if not yes:
            click.confirm(f"Withdraw the result of job {job_id}? This cannot be undone", abort=True)
        now = datetime.now(UTC)

        def note_down(session: Session) -> None:
            study = audit.study_of(job_id=job_id, session=session)
            detail = {"job_id": job_id, "reason": reason}
            record("withdraw result", study=study, detail=detail, now=now, session=session)

        try:
            ids = withdrawal.withdraw(
                job_id,
                Why(reason),
                sessions=sessions,
                spool=Spool(settings.data_dir / "spool"),
                device_name=settings.ae_title,
                now=now,
                beside=note_down,
            )
        except (IllegalMove, NotFound, Transient) as error:
            raise click.ClickException(str(error)) from error
    told = (
        f"{len(ids)} destinations are told"
        if ids
        else "it was sent nowhere, so there is nobody to tell"
    )
    click.echo(f"the result of job {job_id} is withdrawn; {told}")


def _job(what: str, sessions: sessionmaker[Session]) -> int:
    """The job that a number or a UID means."""
    from hipscore.header import is_uid
    from hipscore.store import engine as database
    from hipscore.store import withdrawal

    if what.isdecimal() and len(what) < 19:
        return int(what)
    if not is_uid(what):
        msg = f"{what!r} is neither the number of a job nor a UID"
        raise click.UsageError(msg)
    with database.transaction(sessions) as session:
        found = withdrawal.of_uid(what, session=session)
    if not found:
        msg = f"there is no result to withdraw under {what}; see: hipscore why {what}"
        raise click.ClickException(msg)
    if len(found) > 1:
        msg = (
            f"{what} has several results: give the number of the job ({', '.join(map(str, found))})"
        )
        raise click.UsageError(msg)
    return found[0]
