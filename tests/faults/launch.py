"""Run a hipscore command that dies, freezes or loses an hour exactly where it is told to.

``python -m tests.faults.launch --role analysis --orders DIR -- work --queue analysis`` is
``hipscore work --queue analysis`` with nothing changed but this: at every *point* the
process looks for ``DIR/analysis.json``, and if that orders a blow at this point it strikes
itself. Without an order it behaves as always, so the same command is also the restart.
The program itself has no such switch: the points are hung into the libraries it uses, into
the ledger (every move of the three state machines is one line of it) and into the spool.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Literal

When = Literal["before", "after"]
#: kill this process alone, it and all its relatives, its parent alone; or freeze it
How = Literal["process", "group", "parent", "freeze"]
#: Command Field (0000,0100) of the two responses as it is encoded, PS3.7 E.1
_ANSWERS = {
    "answer.store": bytes.fromhex("00000001 02000000 0180"),
    "answer.report": bytes.fromhex("00000001 02000000 0081"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Strike at the ``nth`` time this role comes to ``point``, before or after its commit."""

    point: str
    when: When
    how: How = "process"
    nth: int = 1


class Orders:
    """The orders of one role, as files, so that they reach processes that already run."""

    def __init__(self, directory: Path, role: str) -> None:
        self._path = directory / f"{role}.json"
        self._struck = directory / f"{role}.struck"
        self._clock = directory / f"{role}.clock"
        self._seen = 0

    def give(self, order: Order) -> None:
        """Let the next process of the role that comes there strike itself. Harness only."""
        self._struck.unlink(missing_ok=True)
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(order)), "utf-8")
        draft.replace(self._path)

    def withdraw(self) -> None:
        """Forget the order."""
        self._path.unlink(missing_ok=True)

    def struck(self) -> int | None:
        """Process id of the process that obeyed; None if none has."""
        try:
            text = self._struck.read_text("utf-8")
        except FileNotFoundError:
            return None
        return int(json.loads(text)["pid"]) if text else None

    def shift_clock(self, seconds: float) -> None:
        """Set the clock of the role this far ahead (negative: back); 0 ends it."""
        if seconds:
            draft = self._clock.with_suffix(".draft-clock")
            draft.write_text(str(seconds), "utf-8")
            draft.replace(self._clock)
        else:
            self._clock.unlink(missing_ok=True)

    def clock_shift(self) -> timedelta:
        """How far the clock of the role is off."""
        try:
            return timedelta(seconds=float(self._clock.read_text("utf-8")))
        except FileNotFoundError:
            return timedelta(0)

    def at(self, point: str, when: When) -> None:
        """Strike if it is ordered here and now; whoever renames the order obeys it, alone."""
        try:
            order = Order(**json.loads(self._path.read_text("utf-8")))
        except FileNotFoundError:
            self._seen = 0
            return
        if (order.point, order.when) != (point, when):
            return
        self._seen += 1
        if self._seen < order.nth:
            return
        mine = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.rename(mine)
        except FileNotFoundError:
            return
        mine.write_text(json.dumps({"pid": os.getpid(), **asdict(order)}), "utf-8")
        mine.rename(self._struck)
        _strike(order.how)

    def at_all(self, points: Iterable[str], when: When) -> None:
        """Do the same for several points at once."""
        for point in points:
            self.at(point, when)


def _strike(how: How) -> None:
    if how == "group":
        os.killpg(os.getpgid(0), signal.SIGKILL)
    elif how == "parent":
        os.kill(os.getppid(), signal.SIGKILL)
    else:
        os.kill(os.getpid(), signal.SIGSTOP if how == "freeze" else signal.SIGKILL)


def _around(function: Callable[..., Any], point: str, orders: Orders) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        orders.at(point, "before")
        result = function(*arguments, **named)
        orders.at(point, "after")
        return result

    return call


def hang_points(orders: Orders) -> None:
    """Hang the points into this process. To be called before hipscore's modules are used."""
    import celery
    from pynetdicom.association import Association

    from hipscore import spool

    _hang_into_ledger()
    _hang_into_commits(orders)
    _hang_into_answers(orders)
    for owner, name, point in (
        (spool.Spool, "put", "spool.put"),
        (Association, "send_c_store", "pacs.store"),
        (Association, "send_n_action", "pacs.commit"),
        (celery.Celery, "send_task", "publish"),
    ):
        setattr(owner, name, _around(getattr(owner, name), point, orders))


def _hang_into_ledger() -> None:
    """Remember with its session every line that is added to the ledger."""
    from hipscore.store import ledger

    append = ledger.append

    def appended(subject: ledger.Subject, what: str, **named: Any) -> None:
        append(subject, what, **named)
        machine = "delivery" if subject.delivery_id else "job" if subject.job_id else "series"
        before = named.get("from_state")
        point = f"{machine}.{what}" + (f".{before}" if before is not None else "")
        named["session"].info.setdefault("points", []).append(point)

    ledger.append = appended


def _hang_into_commits(orders: Orders) -> None:
    """Every line of the ledger and every new image, before and after their COMMIT."""
    from sqlalchemy import Connection, Engine, event
    from sqlalchemy.orm import Session

    # a new image of an open series is the one move that is no line of the ledger
    @event.listens_for(Engine, "after_cursor_execute")
    def _image(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        del cursor
        if statement.lstrip().upper().startswith("INSERT INTO INSTANCES"):
            connection.info["image"] = True

    @event.listens_for(Engine, "rollback")
    def _nothing(connection: Connection) -> None:
        connection.info.pop("image", None)

    @event.listens_for(Session, "before_commit")
    def _before(session: Session) -> None:
        if session.in_nested_transaction():
            return
        session.flush()  # so that the database has it all, and nobody else sees it
        points = session.info.setdefault("points", [])
        if session.connection().info.pop("image", False):
            points.append("series.image.RECEIVING")
        orders.at_all(points, "before")

    @event.listens_for(Session, "after_commit")
    def _after(session: Session) -> None:
        if not session.in_nested_transaction():
            orders.at_all(session.info.pop("points", ()), "after")


def _hang_into_answers(orders: Orders) -> None:
    """The answers to C-STORE and N-EVENT-REPORT, before and after they go on the wire."""
    from pynetdicom.transport import AssociationSocket

    send = AssociationSocket.send

    def sending(self: AssociationSocket, data: bytes) -> None:
        point = next((name for name, field in _ANSWERS.items() if field in data[:160]), None)
        if point is not None:
            orders.at(point, "before")
        send(self, data)
        if point is not None:
            orders.at(point, "after")

    AssociationSocket.send = sending  # type: ignore[method-assign, assignment] # its aim


def bend_clock(orders: Orders) -> None:
    """Let every module of hipscore that asks for the time be off by what is ordered."""

    class Bent(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + orders.clock_shift()

    for name, module in list(sys.modules.items()):
        if name.startswith("hipscore.") and getattr(module, "datetime", None) is datetime:
            source = Path(str(module.__file__)).read_text("utf-8")
            if "datetime.now(" in source:
                module.datetime = Bent  # type: ignore[attr-defined] # replaces its import


def main() -> None:
    """Hang the points, then run the command line as ``hipscore`` does."""
    options = argparse.ArgumentParser()
    options.add_argument("--role", required=True)
    options.add_argument("--orders", type=Path, required=True)
    options.add_argument("command", nargs="+")
    given = options.parse_args()
    orders = Orders(given.orders, given.role)
    hang_points(orders)
    bend_clock(orders)

    from hipscore.cli import main as hipscore

    sys.argv = ["hipscore", *given.command]
    hipscore()


if __name__ == "__main__":
    main()
