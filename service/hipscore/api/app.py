"""The FastAPI application: what every route shares, and how the parts are put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from hipscore import __version__, queue
from hipscore.api import (
    access_rules,
    audit,
    dicomweb,
    fhir,
    login,
    pages,
    problems,
    studies,
    system,
    work,
    worklist,
)
from hipscore.api.access import Access
from hipscore.api.credentials import Credentials
from hipscore.api.guard import Answers, OwnHosts, SameOrigin
from hipscore.api.pictures import Gallery
from hipscore.api.shared import Desk
from hipscore.api.trail import Trail
from hipscore.domain import RESEARCH_USE
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store import engine as database

_DESCRIPTION = (
    f"Hip inflammation scores from coronal STIR MRI. **{RESEARCH_USE}.** "
    "Errors are problem details (RFC 9457); lists are paged by following `next`."
)


def create_app(settings: Settings) -> FastAPI:
    """Build the application. Connects to the database and the broker on first use."""
    engine = database.connect(settings.database)
    desk = Desk(
        settings=settings,
        engine=engine,
        readers=database.readers(engine),
        writers=database.sessions(engine),
        spool=Spool(settings.data_dir / "spool"),
        broker=queue.publisher(settings.broker),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.dispose()

    app = FastAPI(
        title="hipscore",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        # The interactive pages load their scripts from a public host, which hospitals block.
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    app.state.desk = desk
    app.state.gallery = Gallery(desk.spool)
    trail = Trail(desk.writers)
    app.state.credentials = Credentials(desk, trail)
    # the last one is the first to see a request
    app.add_middleware(Access, desk=desk, credentials=app.state.credentials, trail=trail)
    app.add_middleware(SameOrigin)
    app.add_middleware(OwnHosts, allowed=(settings.http_host, *settings.http_allowed_hosts))
    app.add_middleware(Answers)
    app.add_middleware(fhir.Outcomes)
    problems.install(app)
    for router in (
        studies.router,
        work.router,
        system.router,
        dicomweb.router,
        fhir.router,
        login.router,
        audit.router,
        worklist.router,
        pages.router,
    ):
        app.include_router(router)
    app.mount("/static", pages.static())

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            access_rules.describe_in(schema)
            fhir.describe_in(schema)
            problems.describe_in(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI documents extending it
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
