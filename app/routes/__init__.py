"""The REST API. Handlers parse, call one function, return."""

from fastapi import APIRouter

from app.http.access import READS
from app.http.problems import PROBLEM_RESPONSES
from app.routes import (
    attacks,
    audit,
    catalog,
    evaluations,
    identity,
    jobs,
    leaderboards,
    reports,
    transfers,
    weights,
    workers,
)
from app.routes import uploads as pieces

# Every route needs at least the scope 'read'; routes that change something name their own scope.
api = APIRouter(prefix="/api/v1", responses=PROBLEM_RESPONSES, dependencies=[READS])
api.include_router(jobs.router)
api.include_router(leaderboards.router)
api.include_router(transfers.router)
api.include_router(evaluations.router)
api.include_router(workers.router)
api.include_router(catalog.router)
api.include_router(audit.router)
api.include_router(identity.router)

# A router of its own: only these requests have large bodies.
uploads = APIRouter(prefix="/api/v1", responses=PROBLEM_RESPONSES, dependencies=[READS])
uploads.include_router(weights.router)
uploads.include_router(pieces.router)
uploads.include_router(attacks.router)
uploads.include_router(reports.router)
