"""The REST API. Handlers parse, call one function, return."""

from fastapi import APIRouter

from app.problems import PROBLEM_RESPONSES
from app.routes import catalog, jobs, leaderboards

api = APIRouter(prefix="/api/v1", responses=PROBLEM_RESPONSES)
api.include_router(jobs.router)
api.include_router(leaderboards.router)
api.include_router(catalog.router)
