"""The REST API. Handlers parse, call one function, return."""

from fastapi import APIRouter

from app.problems import PROBLEM_RESPONSES
from app.routes import attacks, catalog, evaluations, jobs, leaderboards, weights, workers

api = APIRouter(prefix="/api/v1", responses=PROBLEM_RESPONSES)
api.include_router(jobs.router)
api.include_router(leaderboards.router)
api.include_router(evaluations.router)
api.include_router(workers.router)
api.include_router(catalog.router)

# Apart from the rest: the only requests with large bodies.
uploads = APIRouter(prefix="/api/v1", responses=PROBLEM_RESPONSES)
uploads.include_router(weights.router)
uploads.include_router(attacks.router)
