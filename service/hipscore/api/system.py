"""Health, readiness, metrics."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from hipscore import queue
from hipscore.api import metrics, models
from hipscore.api.shared import AtDesk, Desk
from hipscore.domain import Transient
from hipscore.store import engine as database

router = APIRouter(tags=["system"])

_MB = 1024 * 1024


@router.get("/healthz", response_model=models.Health)
def get_health() -> models.Health:
    """Say that the process answers."""
    return models.Health()


@router.get(
    "/readyz",
    response_model=models.Readiness,
    responses={503: {"description": "not ready"}},
)
def get_readiness(desk: AtDesk) -> Response:
    """Say whether requests can be served, and how each part is."""
    required = {"database": _database(desk), "spool": _spool(desk)}
    ready = all(state == "ok" for state in required.values())
    broker = "ok" if queue.reachable(desk.broker) else "down; work waits for the reaper"
    body = models.Readiness(ready=ready, checks={**required, "broker": broker})
    status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse(body.model_dump(), status_code=status)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def get_metrics(desk: AtDesk) -> Response:
    """Return metrics for Prometheus, read from the database now."""
    return Response(metrics.render(desk), media_type=CONTENT_TYPE_LATEST)


def _database(desk: Desk) -> str:
    try:
        with database.transaction(desk.readers) as session:
            session.connection()
            schema = database.schema(desk.engine)
    except Transient:
        return "cannot be reached"
    return "ok" if schema.current else schema.text


def _spool(desk: Desk) -> str:
    try:
        free = desk.spool.free_bytes() // _MB
    except (OSError, Transient):
        return "cannot be read"
    reserve = desk.settings.reserve_mb
    return "ok" if free >= reserve else f"{free} MB free, {reserve} MB are kept in reserve"
