"""DICOMweb (PS3.18): images by STOW-RS, and the worklist (UPS-RS) with its events."""

from __future__ import annotations

from fastapi import APIRouter

from hipscore.api.dicomweb import events, stow, workitems

router = APIRouter()
for part in (stow.router, workitems.router, events.router):
    router.include_router(part)

__all__ = ["router"]
