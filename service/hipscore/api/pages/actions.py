"""What an operator does from a page: a form is posted, and leads back to the page.

That the form comes from a page of ours and whose role it is, is checked before
(:mod:`hipscore.api.access`).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from hipscore.api import models, work
from hipscore.api.login import local
from hipscore.api.pages.rendering import render, root
from hipscore.api.shared import AtDesk, RowId
from hipscore.lifecycle import IllegalMove
from hipscore.reporting.rejection import Why

router = APIRouter(include_in_schema=False)

_Back = Annotated[str, Form(alias="next", max_length=2000)]


@router.post("/queue/jobs/{job_id}/retry")
def retry_job(job_id: RowId, request: Request, desk: AtDesk, back: _Back = "") -> Response:
    """Analyse again, then show the page again."""
    try:
        work.retry_job(job_id, desk)
    except IllegalMove as error:
        return _refused(request, str(error), back)
    return _back(request, back)


@router.post("/queue/deliveries/{delivery_id}/retry")
def retry_delivery(
    delivery_id: RowId, request: Request, desk: AtDesk, back: _Back = ""
) -> Response:
    """Send again, then show the page again."""
    try:
        work.retry_delivery(delivery_id, desk)
    except IllegalMove as error:
        return _refused(request, str(error), back)
    return _back(request, back)


@router.post("/queue/jobs/{job_id}/withdraw")
def withdraw(
    job_id: RowId,
    request: Request,
    desk: AtDesk,
    reason: Annotated[Why, Form()],
    back: _Back = "",
) -> Response:
    """Withdraw a result for good, then show the page again."""
    try:
        work.withdraw_result(job_id, models.Withdrawal(reason=reason), desk)
    except IllegalMove as error:
        return _refused(request, str(error), back)
    return _back(request, back)


def _back(request: Request, wanted: str) -> Response:
    return RedirectResponse(local(wanted, root(request)), HTTPStatus.SEE_OTHER)


def _refused(request: Request, why: str, back: str) -> Response:
    return render(
        request,
        "refused.html",
        http_status=HTTPStatus.CONFLICT,
        why=why,
        back=local(back, root(request)),
    )
