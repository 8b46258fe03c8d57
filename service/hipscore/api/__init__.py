"""The REST API: scores, studies, ledger, artifacts, jobs and deliveries over HTTP."""

from __future__ import annotations

from hipscore.api.app import create_app
from hipscore.api.server import ApiError, run_api

__all__ = ["ApiError", "create_app", "run_api"]
