"""The application: wiring only."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import fastapi_offline
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

import gkl
from app.core.logs import AccessLog, is_quiet, with_request_id
from app.core.paths import own_path, under_root
from app.core.settings import Settings
from app.http.access import PUBLIC, refuse_other_sites
from app.http.deadline import AnswerInTime
from app.http.head_requests import HeadAsGet
from app.http.operations import operation_id
from app.http.origins import ApiForOrigins
from app.http.problems import TooLargeAsProblem, install_error_handlers, no_answer
from app.http.security_headers import BodyTimeout, SecurityHeaders
from app.http.service import Service
from app.maintenance.metrics import Metrics, RequestLatency
from app.routes import api, health, uploads
from app.web import documentation, login, pages, rendering

_HERE = Path(__file__).parent
_UPLOADS = re.compile(r"/api/v1/(weights|uploads(/[^/]+)?|entries/[^/]+/attacks|reports)")
_FILES = re.compile(_UPLOADS.pattern + r"|/api/v1/(weights/[^/]+/file|(entries|evaluations)/[^/]+/certificate)")
# Swagger UI's files as that package ships them: FastAPI's own page would load them from a CDN.
_SWAGGER_FILES = Path(fastapi_offline.__file__).parent / "static"


class Application(FastAPI):
    """FastAPI, wrapped in layers that must see every answer. FastAPI's own middleware never sees the one to an
    unexpected error."""

    def serve(self, service: Service) -> None:
        """Use this service's database and files from now on."""
        self.state.service = service
        self.state.metrics = Metrics(service)
        self.state.readiness = health.Readiness(service)
        # The next request builds the stack again.
        self.middleware_stack = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings: Settings = self.state.service.settings
        await super().__call__(under_root(scope, settings.root_path), receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        metrics: Metrics = self.state.metrics
        shared = ApiForOrigins(super().build_middleware_stack(), self.state.service.settings.origins)
        measured = RequestLatency(shared, metrics.requests, self.routes)
        return with_request_id(AccessLog(measured))


def create_app(settings: Settings | None = None) -> Application:
    """The API and the pages. Connects to nothing until the first request."""
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.service.database.close()

    app = Application(
        title="GKL Bench",
        version=gkl.__version__,
        summary="Adversarial training, AutoAttack evaluation and a leaderboard, as jobs over REST.",
        contact=settings.contact_of_owner,
        servers=[{"url": settings.root_path or "/"}],
        generate_unique_id_function=operation_id,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        telemetry={
            "tracing": settings.tracing,
            # `app.core.tracing` sets it up, for workers too. Metrics are Prometheus' here, and failures are in the log.
            "auto_configure": False,
            "operation_spans": False,
            "metrics": False,
            "logs": False,
            "exclude": lambda scope: is_quiet(own_path(scope)),
        },
        dependencies=[Depends(refuse_other_sites)],
    )
    app.serve(Service.from_settings(settings, is_hasty=True))
    app.add_middleware(HeadAsGet)
    app.add_middleware(
        TooLargeAsProblem,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_weights_bytes,
        uploads=_UPLOADS,
    )
    install_error_handlers(app, rendering.error_page)
    app.add_middleware(BodyTimeout, seconds=settings.body_timeout_seconds)
    app.add_middleware(AnswerInTime, files=_FILES, refusal=no_answer(rendering.error_page))
    app.add_middleware(SecurityHeaders)
    # On the routers, not on the application: its limit answers from outside all middleware.
    for router in (api, health.router, pages.router, login.router):
        app.include_router(router, max_body_size=settings.max_body_bytes)
    app.include_router(uploads, max_body_size=settings.max_weights_bytes)
    app.mount("/static", StaticFiles(directory=_HERE / "web" / "static"), name="static")
    app.mount("/swagger", StaticFiles(directory=_SWAGGER_FILES), name="swagger")

    app.include_router(documentation.router)
    app.state.documentation = documentation.BuiltPages(settings.effective_docs_dir)
    app.mount("/docs", app.state.documentation, name="documentation")

    @app.get("/api", include_in_schema=False, dependencies=[PUBLIC])
    def api_page(request: Request) -> HTMLResponse:
        # Not FastAPI's page, whose inline script the content security policy forbids.
        return rendering.render(request, "api.html")

    return app
