"""What Prometheus is told: this process's requests, and of the service what the database knows.

The second part is read when somebody asks, so that it is the same whichever process of the API answers.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

from fastapi.routing import iter_route_contexts
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import and_, exists, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, aliased
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import jobs, workers
from app.broker import hears_relay, messages_waiting
from app.database import database_now
from app.service import Service
from app.tables import Job, JobEvent, JobKind, JobState
from gkl.errors import FailureCode
from gkl.outcome import Resources

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_HELD = (JobState.RUNNING, JobState.CANCELLING)
_ENDS = (JobState.SUCCEEDED, JobState.CANCELLED, *FailureCode)


class Metrics:
    """Of one application. Connects to nothing until somebody asks."""

    def __init__(self, service: Service) -> None:
        # A third series beside each sum and count, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        # The library's own way for several processes behind one address: each keeps its numbers in files of that
        # directory, and whichever answers adds them up. The library reads the variable itself when it is imported.
        is_shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        if is_shared:
            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]
        else:
            ProcessCollector(registry=self._registry)
        self._registry.register(_ServiceCollector(service))
        self.requests = Histogram(
            "gklbench_http_request_duration_seconds",
            "Time until an answer begins: a stream then lasts for as long as somebody listens.",
            ("method", "route", "status"),
            registry=None if is_shared else self._registry,
        )

    def render(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)


class RequestLatency:
    """Observes each request under its route's template: as many series as there are routes, whatever is asked for."""

    def __init__(self, app: ASGIApp, requests: Histogram, routes: Sequence[BaseRoute]) -> None:
        self.app, self.requests = app, requests
        self.templates: dict[Any, str] = {}
        for context in iter_route_contexts(routes):
            # A mount has no endpoint: there the scope names what is mounted.
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
    """Asked by the registry. What is away says so, and takes nothing else with it."""

    def __init__(self, service: Service) -> None:
        self.service, self.history = service, _History()
        self.turn = threading.Lock()
        """One scrape at a time: each adds to the history."""

    def _can_write(self) -> bool:
        try:
            self.service.database.check_can_write()
        except SQLAlchemyError:
            return False
        return True

    def collect(self) -> Iterator[Metric]:
        yield from self._host()
        try:
            with self.turn, self.service.database.reading() as session:
                found = [*self._jobs(session), *self._workers(session), *self.history.collect(session)]
        except SQLAlchemyError:
            found = []
        is_up = bool(found) and self._can_write()
        yield _gauge("gklbench_database_up", "Whether the database can be read and written.", float(is_up))
        yield from found

    def _host(self) -> Iterator[Metric]:
        settings = self.service.settings
        waiting = messages_waiting(settings)
        yield _gauge("gklbench_broker_up", "Whether the broker answers.", float(waiting is not None))
        if waiting is not None:
            yield _gauge("gklbench_broker_messages_waiting", "Wake-ups that no worker has taken yet.", waiting)
            heard = bool(hears_relay(settings))
            yield _gauge("gklbench_relay_up", "Whether a relay was heard of lately.", float(heard))
        yield _gauge("gklbench_store_up", "Whether artifacts can be kept.", float(self.service.store.problem() is None))
        try:
            free = shutil.disk_usage(settings.data_dir).free
        except OSError:
            return
        yield _gauge("gklbench_data_directory_free_bytes", "Room left where artifacts are kept.", free)

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
        yield _gauge("gklbench_queue_jobs", "Jobs that wait for nothing but a worker.", jobs.count_due(session))
        yield _gauge(
            "gklbench_queue_oldest_seconds",
            "For how long the first of them has been due.",
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
        "gklbench_running_job_memory_peak_bytes", "Most main memory that a running job has held.", labels=labels
    )
    gpu_memory = GaugeMetricFamily(
        "gklbench_running_job_gpu_memory_peak_bytes", "Most GPU memory that a running job has held.", labels=labels
    )
    running = select(Job.id, Job.resources).where(Job.state.in_(_HELD), Job.resources.is_not(None))
    for job_id, raw in session.execute(running):
        used = Resources.model_validate(raw)
        memory.add_metric((str(job_id), used.device), used.peak_memory_bytes)
        if used.peak_gpu_memory_bytes is not None:
            gpu_memory.add_metric((str(job_id), used.device), used.peak_gpu_memory_bytes)
    return iter((memory, gpu_memory))


class _History:
    """Counters made of the jobs' events: rows of jobs go back when one is retried, counters never may.

    Each scrape adds the events since the one before, up to a minute ago: an event gets its number before it is
    committed, and what commits later than a higher number must not be passed over. No transaction is that long.

    Ends and seconds on workers are those of all time: events of states are kept as long as their job, so that a
    process that starts anew comes to the same sums. Stages count from a process's first scrape: cleanup removes the
    events of jobs that failed, and a sum that is smaller after a restart would be taken for as much work, just done.
    """

    lag = timedelta(minutes=1)

    def __init__(self) -> None:
        self.event_id = 0
        """The last one that is counted."""
        self.is_new = True
        self.ends: Counter[tuple[str, str]] = Counter()
        self.run_seconds: defaultdict[str, float] = defaultdict(float)
        self.running: dict[int, tuple[str, datetime]] = {}
        """The kind of each job that a worker has, and since when."""
        self.stages: Counter[str] = Counter()
        self.stage_seconds: defaultdict[str, float] = defaultdict(float)

    def collect(self, session: Session) -> Iterator[Metric]:
        until = database_now(session) - self.lag
        self._read(session, until)
        ends = CounterMetricFamily(
            "gklbench_job_outcomes",
            "Jobs that ended, by how: succeeded, cancelled, or the code of their failure. A retried one ends again.",
            labels=("kind", "code"),
        )
        seconds = CounterMetricFamily("gklbench_job_run_seconds", "Time of jobs on workers.", labels=("kind",))
        # Also of those that run. Until a minute ago too, or a job that just ended would be counted twice or not at all.
        running: defaultdict[str, float] = defaultdict(float)
        for kind, since in self.running.values():
            running[kind] += max(0.0, (until - since).total_seconds())
        for kind in JobKind:
            for code in _ENDS:
                ends.add_metric((kind, code), self.ends[kind, code])
            seconds.add_metric((kind,), self.run_seconds[kind] + running[kind])
        stages = SummaryMetricFamily(
            "gklbench_stage_seconds", "Finished stages: epochs of trainings, and each attack.", labels=("stage",)
        )
        for stage, count in self.stages.items():
            stages.add_metric((stage,), count, self.stage_seconds[stage])
        return iter((ends, seconds, stages))

    def _read(self, session: Session, until: datetime) -> None:
        last = select(JobEvent.id).where(JobEvent.id > self.event_id, JobEvent.created_at <= until)
        end = session.scalar(last.order_by(JobEvent.id.desc()).limit(1))
        types = ("state",) if self.is_new else ("state", "epoch", "attack")
        if end is not None:
            events = (
                select(JobEvent.id, JobEvent.job_id, JobEvent.type, JobEvent.data, JobEvent.created_at, Job.kind)
                .join(Job, Job.id == JobEvent.job_id)
                .where(JobEvent.id > self.event_id, JobEvent.id <= end, JobEvent.type.in_(types), ~_is_repeated())
                .order_by(JobEvent.id)
                .execution_options(yield_per=1000)
            )
            for event_id, job_id, event_type, data, created_at, kind in session.execute(events):
                if event_type == "state":
                    self._move(job_id, kind, data, created_at)
                else:
                    self._finish(event_type, data)
                # One by one: if the database goes away in between, the next scrape goes on from here.
                self.event_id = event_id
            self.event_id = end
        self.is_new = False

    def _move(self, job_id: int, kind: JobKind, data: dict[str, Any], at: datetime) -> None:
        state = JobState(data["state"])
        if state is JobState.RUNNING:
            self.running[job_id] = (kind, at)
        elif state is not JobState.CANCELLING and job_id in self.running:
            self.run_seconds[kind] += (at - self.running.pop(job_id)[1]).total_seconds()
        if state.is_final:
            self.ends[kind, data.get("code", state)] += 1

    def _finish(self, event_type: str, data: dict[str, Any]) -> None:
        stage, seconds = (
            ("training", data["seconds"])
            if event_type == "epoch"
            else (data["outcome"]["attack"], data["outcome"]["seconds"])
        )
        self.stages[stage] += 1
        self.stage_seconds[stage] += seconds


def _is_repeated() -> Any:
    """An evaluation that goes on tells again of the attacks that were finished before."""
    earlier = aliased(JobEvent)
    path = ("outcome", "attack")
    return exists().where(
        and_(
            JobEvent.type == "attack",
            earlier.type == "attack",
            earlier.job_id == JobEvent.job_id,
            earlier.id < JobEvent.id,
            earlier.data[path].as_string() == JobEvent.data[path].as_string(),
        )
    )


def _gauge(name: str, sentence: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, sentence, value=value)
