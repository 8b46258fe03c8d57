"""Pages for people: worklist, study, trend, ledger and queue, made on the server.

No build step and nothing from elsewhere: templates, one style sheet, plain ES modules. Every
page can be read without scripts and used with the keyboard alone.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.staticfiles import StaticFiles

from hipscore.api.pages import actions, ledger, queue, slices, study, trend, worklist

router = APIRouter()
for _each in (worklist, study, slices, trend, ledger, queue, actions):
    router.include_router(_each.router)


def static() -> StaticFiles:
    """The files that the pages load, to be mounted at ``/static``."""
    return StaticFiles(directory=Path(__file__).parent / "static")


__all__ = ["router", "static"]
