"""The settings. The service reads its environment in this module only; names of settings contain their units."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL

from app.core.addresses import check_broker_url, check_database_url
from gkl.addresses import is_loopback

_CHECKOUT = Path(__file__).parents[2]
PLACEHOLDER = "changethis"
"""What `.env.example` has in place of each secret."""


_ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*")
# A request for /jobs/1 would be one for the page of a job, and one for /1 under the path /jobs.
_OWN_PATHS = [
    [name]
    for name in (
        *("api", "audit", "compare", "docs", "entries", "flags", "healthz", "jobs", "leaderboards", "login", "logout"),
        *("me", "metrics", "models", "openapi.json", "readyz", "static", "submit", "swagger", "workers"),
    )
]
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


class Settings(BaseSettings):
    """Every option of the service, set by environment variables named GKLBENCH_<FIELD>."""

    model_config = SettingsConfigDict(
        env_prefix="GKLBENCH_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    data_dir: Path = Path("gklbench-data")
    """Where artifacts, logs and, in embedded mode, the database are kept."""

    datasets_dir: str = ""
    """Folder of the data sets, with one subfolder for each, by name; empty means `datasets` in the data directory."""

    models_dir: str = ""
    """RobustBench's weights, `<dataset>/<threat model>/<model>.pt`; empty means `models` in the data directory."""

    docs_dir: str = ""
    """Folder of the built documentation, served at `/docs/`; empty means `build/docs` of the checkout."""

    database_url: str = ""
    """SQLAlchemy address of the database; empty means the SQLite file `gklbench.sqlite3` in the data directory."""

    store_url: str = ""
    """Store of artifacts: `s3://bucket/prefix`, with AWS_ variables; empty means `artifacts` in the data directory."""

    store_cache_bytes: int = Field(default=10 * 1024**3, ge=0)
    """Size of the cache that each data directory has of an `s3://` store, so that a second read needs no download."""

    broker_url: str = "redis://127.0.0.1:6379/0"
    """Address of the Redis-protocol server that wakes the workers."""

    host: str = "127.0.0.1"
    """Address on which the API and the pages listen."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port on which the API and the pages listen."""

    api_processes: int = Field(default=1, ge=1, le=64)
    """Processes of `gklbench serve`, which share its port."""

    root_path: str = ""
    """Path below which a proxy serves the service, such as `/bench`; empty means at the root."""

    contact: str = ""
    """E-mail address or `https://` page of the service's owner; the OpenAPI document shows it."""

    allowed_origins: str = ""
    """Comma-separated origins, such as `https://lab.example`, whose pages may call the API with a token."""

    access: Literal["auto", "open", "tokens"] = "auto"
    """`open`: no token needed, loopback only; `tokens`: see `docs/security.md`; `auto`: open on loopback only."""

    anonymous_read: bool = True
    """Whether anyone may read boards and jobs without a token, when the service asks for tokens."""

    anonymous_requests_per_minute: int = Field(default=600, ge=1)
    """Most requests a minute without a token from one address; each token has a limit of its own."""

    login_hours: float = Field(default=12, gt=0)
    """How long a browser stays logged in."""

    trusted_proxies: str = "127.0.0.1"
    """Comma-separated addresses of the reverse proxies whose X-Forwarded headers are trusted."""

    body_timeout_seconds: float = Field(default=30, gt=0)
    """A request body that stalls this long, or arrives below 10 kB/s, is answered with 408."""

    max_stream_seconds: float = Field(default=3600, gt=0)
    """How long one event stream of a job lasts; a client then opens another one and misses no event."""

    max_streams: int = Field(default=20, ge=1)
    """Most event streams that one API process keeps open for one token, or for one address without a token."""

    max_connections: int = Field(default=1000, ge=10)
    """Most connections that one API process serves at once; it answers further ones with 503."""

    max_epochs: int = Field(default=10_000, ge=1)
    """Most epochs that a training may ask for."""

    max_points: int = Field(default=1_000_000, ge=1)
    """Most test images that an evaluation may ask for."""

    max_batch_size: int = Field(default=65_536, ge=1)
    """Largest batch that a training or an evaluation may ask for."""

    architectures: str = ""
    """Comma-separated architectures that jobs may name; empty means all."""

    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)
    """Largest request body that the API reads."""

    max_weights_bytes: int = Field(default=4 * 1024**3, ge=1024)
    """Largest file of weights that can be sent."""

    max_open_uploads: int = Field(default=20, ge=1)
    """Most unfinished uploads in pieces that one submitter may have."""

    max_open_upload_bytes: int = Field(default=64 * 1024**3, ge=1)
    """Most announced bytes of one submitter's unfinished uploads together; one alone may have any allowed size."""

    lease_seconds: float = Field(default=90, gt=0)
    """The relay takes a running job from its worker when the worker has not renewed the lease for this long."""

    heartbeat_seconds: float = Field(default=15, gt=0)
    """How often a worker renews the lease of its job."""

    max_lost_leases: int = Field(default=3, ge=1)
    """A job fails with `worker_lost` after losing this many workers without saving anything in between."""

    lost_backoff_seconds: float = Field(default=10, ge=0)
    """How long a job waits after it lost its worker; each further loss doubles the wait."""

    max_run_seconds: float = Field(default=7 * 24 * 3600, gt=0)
    """A job that has spent longer than this on workers fails with `timed_out`; a retry resumes from its checkpoint."""

    checkpoint_seconds: float = Field(default=60, ge=0)
    """Least time between two checkpoints of a training; it also saves one when its worker stops and when it ends."""

    no_progress_seconds: float = Field(default=1800, gt=0)
    """A run that reports nothing for longer than this is stopped, and its job fails with `no_progress`."""

    stop_grace_seconds: float = Field(default=60, gt=0)
    """How long a run that was asked to stop may take to save its state before it is killed."""

    min_free_bytes: int = Field(default=256 * 1024**2, ge=0)
    """A worker takes no job while its data directory has less free space than this."""

    poll_seconds: float = Field(default=5, gt=0)
    """How often an idle worker looks for jobs in the database, in case a message was lost."""

    relay_seconds: float = Field(default=5, gt=0)
    """How often the relay looks for messages to publish and for lost workers."""

    republish_seconds: float = Field(default=60, gt=0)
    """The relay sends a job's message again if the job is still queued after this long."""

    idempotency_hours: float = Field(default=24, gt=0)
    """How long the service remembers an Idempotency-Key."""

    max_log_bytes: int = Field(default=16 * 1024**2, ge=4096)
    """Largest log of a job, and of a process of `gklbench up`; older lines are dropped."""

    upload_retention_days: float = Field(default=7, gt=0)
    """How long uploaded weights are kept while no job or entry needs them, and how long unfinished uploads are."""

    audit_retention_days: float = Field(default=365, ge=1)
    """How long the audit trail is kept."""

    checkpoint_retention_days: float = Field(default=7, ge=0)
    """How long the checkpoints of a failed or cancelled job are kept; a retry within this time resumes from them."""

    weights_retention_days: float = Field(default=365, ge=0)
    """How long weights that were trained here are kept while no entry uses them."""

    certificate_retention_days: float = Field(default=30, ge=0)
    """How long a certificate is kept after a later one of the same entry includes its examples."""

    job_retention_days: float = Field(default=730, ge=0)
    """How long an ended job without a result on a board is kept, with its events and its log."""

    event_retention_days: float = Field(default=365, ge=0)
    """How long the events of an ended job are kept; its page and curves are made from them."""

    log_retention_days: float = Field(default=90, ge=0)
    """How long an ended job's log is kept, and the epoch and attack events of a failed or cancelled job."""

    cleanup_seconds: float = Field(default=300, gt=0)
    """How often the relay deletes expired data and files that nothing refers to."""

    log_format: Literal["text", "json"] = "text"
    """Format of the logs on standard error: `text` for people, `json` for log collectors."""

    tracing: bool = False
    """Whether to send OpenTelemetry traces of requests and runs, by the OTEL_ variables; needs `gklbench[otel]`."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.lease_seconds < 3 * self.heartbeat_seconds:
            raise ValueError(
                "GKLBENCH_LEASE_SECONDS must be at least three times GKLBENCH_HEARTBEAT_SECONDS, "
                "or living workers would lose their jobs"
            )
        if self.access == "open" and not is_loopback(self.host):
            raise ValueError(
                f"open access is for loopback only, and GKLBENCH_HOST is {self.host}; leave it at auto, and "
                "give those who may come in a token: gklbench token create"
            )
        check_broker_url("GKLBENCH_BROKER_URL", self.broker_url)
        if self.database_url:
            check_database_url("GKLBENCH_DATABASE_URL", self.database_url)
        if not _ROOT_PATH.fullmatch(self.root_path) or self.root_path.split("/")[1:2] in _OWN_PATHS:
            raise ValueError(
                "GKLBENCH_ROOT_PATH must begin with a slash and not end with one, such as /bench; be none of the "
                "service's own paths, such as /jobs; or be empty"
            )
        if self.contact and not re.fullmatch(r"https?://\S+|[^@\s]+@[^@\s]+", self.contact):
            raise ValueError("GKLBENCH_CONTACT must be an e-mail address or begin with https://, or be empty")
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"GKLBENCH_ALLOWED_ORIGINS holds {origin!r}; write origins as a browser sends them, by commas: "
                    "https://lab.example or http://lab.example:8080, without a path, in small letters"
                )
        if self.store_url and not re.fullmatch(
            r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9][A-Za-z0-9._-]*)*/?", self.store_url
        ):
            raise ValueError("GKLBENCH_STORE_URL must be s3://bucket or s3://bucket/prefix, or empty for a folder")
        for name, url in (("GKLBENCH_DATABASE_URL", self.database_url), ("GKLBENCH_BROKER_URL", self.broker_url)):
            if PLACEHOLDER in url:
                raise ValueError(f"{name} holds the placeholder {PLACEHOLDER!r} in place of a secret; choose one")
        return self

    @property
    def own_url(self) -> str:
        """Where this host reaches its own API. Where that listens on all addresses, loopback is among them."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}{self.root_path}"

    @property
    def contact_of_owner(self) -> dict[str, str] | None:
        """As an OpenAPI document has it."""
        if not self.contact:
            return None
        return {"url" if self.contact.startswith("http") else "email": self.contact}

    @property
    def origins(self) -> frozenset[str]:
        """Other sites whose pages may call the API."""
        return frozenset(name.strip() for name in self.allowed_origins.split(",") if name.strip())

    @property
    def is_open(self) -> bool:
        """Whether nobody needs a token."""
        return self.access != "tokens" and is_loopback(self.host)

    @property
    def allowed_architectures(self) -> frozenset[str]:
        """Empty for all."""
        return frozenset(name.strip() for name in self.architectures.split(",") if name.strip())

    @property
    def effective_database_url(self) -> str:
        if self.database_url:
            return self.database_url
        path = self.data_dir.resolve() / "gklbench.sqlite3"
        # Made, not formatted: in a name like `a?b` the rest would be taken for options.
        return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)

    @property
    def young_seconds(self) -> float:
        """What files were made so lately may have an owner who has yet to tell the database: two leases, and never
        less than a transaction may wait for its turn."""
        return max(120.0, 2 * self.lease_seconds)

    @property
    def runs_dir(self) -> Path:
        """Where each run has its working directory."""
        return self.data_dir.resolve() / "runs"

    @property
    def effective_datasets_dir(self) -> Path:
        return Path(self.datasets_dir).resolve() if self.datasets_dir else self.data_dir.resolve() / "datasets"

    @property
    def effective_models_dir(self) -> Path:
        return Path(self.models_dir).resolve() if self.models_dir else self.data_dir.resolve() / "models"

    @property
    def effective_docs_dir(self) -> Path:
        return Path(self.docs_dir).resolve() if self.docs_dir else _CHECKOUT / "build" / "docs"

    def environment(self) -> dict[str, str]:
        """The variables that give another process these settings."""
        values = {name: str(getattr(self, name)) for name in type(self).model_fields}
        values["data_dir"] = str(self.data_dir.resolve())
        values["datasets_dir"] = str(self.effective_datasets_dir)
        values["models_dir"] = str(self.effective_models_dir)
        if self.docs_dir:
            values["docs_dir"] = str(self.effective_docs_dir)
        return {f"GKLBENCH_{name.upper()}": value for name, value in values.items()}
