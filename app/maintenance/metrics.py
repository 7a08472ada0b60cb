"""Metrics for Prometheus: requests of the API's processes, and the state of the service in the database.

The second part is read on each scrape, so it is the same whichever API process answers.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, get_args

from fastapi.routing import iter_route_contexts
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import jobs
from app.db.database import database_now
from app.db.tables import Job
from app.http.service import Service
from app.jobs import metric_sums, workers
from app.jobs.broker import messages_waiting, relay_is_running
from app.jobs.metric_sums import Sums
from gkl.answers import HELD, JobKind, JobState
from gkl.errors import FailureCode
from gkl.outcome import Resources

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
# Shorter than the deadline of `app.http.deadline`. The next scrape continues what this one could not count in time.
_COUNTS_SECONDS = 4.0
_ENDS = (JobState.SUCCEEDED, JobState.CANCELLED, *FailureCode)


class Metrics:
    """The metrics of one application. Connects to nothing before the first scrape."""

    def __init__(self, service: Service) -> None:
        # Otherwise the library adds a third, unused series to each sum and count.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        # The library's way to support several processes behind one address: each writes its numbers to files in that
        # directory, and the one that answers adds them up. The library reads the variable when it is imported.
        is_shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        if is_shared:
            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]
        else:
            ProcessCollector(registry=self._registry)
        self._registry.register(_ServiceCollector(service))
        self.requests = Histogram(
            "gklbench_http_request_duration_seconds",
            "Time until an answer begins; the duration of streams is not included.",
            ("method", "route", "status"),
            registry=None if is_shared else self._registry,
        )

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class RequestLatency:
    """Observes each request under its route's template, so that there is one series per route, not per address."""

    def __init__(self, app: ASGIApp, requests: Histogram, routes: Sequence[BaseRoute]) -> None:
        self.app, self.requests = app, requests
        self.templates: dict[Any, str] = {}
        for context in iter_route_contexts(routes):
            # A mount has no endpoint: then the scope names the mounted application.
            endpoint = context.endpoint or getattr(context.route, "app", None)
            self.templates[endpoint] = context.path_format or "none"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()

        async def send_and_observe(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in _METHODS else "other"
                route = self.templates.get(scope.get("endpoint"), "none")
                seconds = time.perf_counter() - started
                self.requests.labels(method, route, message["status"]).observe(seconds)
            await send(message)

        await self.app(scope, receive, send_and_observe)


class _ServiceCollector(Collector):
    """Collects the service's metrics on each scrape. A part that is down is reported and does not hide the others."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.turn = threading.Lock()
        """One scrape at a time: a second one would only wait for the sums of the first."""

    def _can_write(self) -> bool:
        try:
            self.service.database.check_can_write()
        except SQLAlchemyError:
            return False
        return True

    def collect(self) -> Iterator[Metric]:
        yield from self._host()
        try:
            with self.turn:
                with self.service.database.reading() as session:
                    found = [*self._jobs(session), *self._workers(session)]
                found += self._history()
        except SQLAlchemyError:
            found = []
        is_up = bool(found) and self._can_write()
        yield _gauge("gklbench_database_up", "Whether the database can be read and written.", float(is_up))
        yield from found

    def _history(self) -> Iterator[Metric]:
        """The counters; none if the database is read-only, while the gauges are still available."""
        try:
            return _history(metric_sums.updated_sums(self.service.database, patience_seconds=_COUNTS_SECONDS))
        except SQLAlchemyError:
            return iter(())

    def _host(self) -> Iterator[Metric]:
        settings = self.service.settings
        waiting = messages_waiting(settings)
        yield _gauge("gklbench_broker_up", "Whether the broker answers.", float(waiting is not None))
        if waiting is not None:
            yield _gauge("gklbench_broker_messages_waiting", "Wake-ups that no worker has taken yet.", waiting)
            heard = bool(relay_is_running(settings))
            yield _gauge("gklbench_relay_up", "Whether a relay is running.", float(heard))
        up = float(self.service.store.problem() is None)
        yield _gauge("gklbench_store_up", "Whether artifacts can be stored.", up)
        try:
            free = shutil.disk_usage(settings.data_dir).free
        except OSError:
            return
        yield _gauge("gklbench_data_directory_free_bytes", "Free disk space of the data directory.", free)

    def _jobs(self, session: Session) -> Iterator[Metric]:
        counts = GaugeMetricFamily("gklbench_jobs", "Jobs by kind and state.", labels=("kind", "state"))
        rows = session.execute(select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state))
        found = {(kind, state): number for kind, state, number in rows}
        for kind in JobKind:
            for state in JobState:
                counts.add_metric((kind, state), found.get((kind, state), 0))
        yield counts
        now = database_now(session)
        first = session.scalar(select(func.min(Job.due_at)).where(Job.state == JobState.QUEUED))
        yield _gauge("gklbench_queue_jobs", "Jobs that wait only for a worker.", jobs.count_due(session))
        yield _gauge(
            "gklbench_queue_oldest_seconds",
            "How long the oldest of them has been due.",
            max(0.0, (now - first).total_seconds()) if first is not None else 0.0,
        )
        yield from _resources(session)

    def _workers(self, session: Session) -> Iterator[Metric]:
        lease = timedelta(seconds=self.service.settings.lease_seconds)
        states = Counter(status.state for status in workers.all_of_them(session, lease=lease))
        found = GaugeMetricFamily("gklbench_workers", "Workers by state.", labels=("state",))
        for state in get_args(workers.State):
            found.add_metric((state,), states[state])
        yield found


def _resources(session: Session) -> Iterator[Metric]:
    labels = ("job_id", "device")
    memory = GaugeMetricFamily(
        "gklbench_running_job_memory_peak_bytes", "Peak main memory of a running job.", labels=labels
    )
    gpu_memory = GaugeMetricFamily(
        "gklbench_running_job_gpu_memory_peak_bytes", "Peak GPU memory of a running job.", labels=labels
    )
    running = select(Job.id, Job.resources).where(Job.state.in_(HELD), Job.resources.is_not(None))
    for job_id, raw in session.execute(running):
        used = Resources.model_validate(raw)
        memory.add_metric((str(job_id), used.device), used.peak_memory_bytes)
        if used.peak_gpu_memory_bytes is not None:
            gpu_memory.add_metric((str(job_id), used.device), used.peak_gpu_memory_bytes)
    return iter((memory, gpu_memory))


def _history(sums: Sums) -> Iterator[Metric]:
    """Counters over all time, which never fall, also when a job is retried."""
    ends = CounterMetricFamily(
        "gklbench_job_outcomes",
        "Ended jobs by result: succeeded, cancelled, or the code of the failure. A retried job counts again.",
        labels=("kind", "code"),
    )
    seconds = CounterMetricFamily("gklbench_job_run_seconds", "Time of jobs on workers.", labels=("kind",))
    for kind in JobKind:
        for code in _ENDS:
            ends.add_metric((kind, code), sums.ends[kind, code])
        seconds.add_metric((kind,), sums.run_seconds[kind])
    stages = SummaryMetricFamily(
        "gklbench_stage_seconds", "Finished stages: epochs of trainings, and each attack.", labels=("stage",)
    )
    for stage, (count, total) in sums.stages.items():
        stages.add_metric((stage,), count, total)
    return iter((ends, seconds, stages))


def _gauge(name: str, sentence: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, sentence, value=value)
