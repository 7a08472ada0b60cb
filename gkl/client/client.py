"""The client of the REST API: a method for each operation."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

from gkl.answers import (
    BoardDetail,
    BoardPointsView,
    BoardPointView,
    BoardSummary,
    ClassView,
    ComparisonView,
    EntryDetail,
    EntryView,
    EvaluationView,
    IdentityView,
    JobKind,
    JobMetrics,
    JobPage,
    JobState,
    JobView,
    ModelDetail,
    PointView,
    TransferView,
    UploadView,
    WorkerView,
)
from gkl.client.board import Board
from gkl.client.certificate_download import download_certificate
from gkl.client.connection import Connection
from gkl.client.errors import ClientError
from gkl.client.events import StreamEvent, follow
from gkl.client.logs import LogPart
from gkl.client.uploads import Uploader
from gkl.progress_bar import progress_bar
from gkl.spec import BaseTrainSpec, DistillSpec, EvaluateSpec, Publication, SentSpec, TrainSpec

_JOBS_PER_PAGE = 200
_ENTRIES_PER_PAGE = 1000
_SEND_SECONDS = 600

ExportFormat = Literal["csv", "json", "robustbench", "bibtex", "latex"]


class Client:
    """A client of one service, with one token.

    Every method raises a `ClientError` if the service refuses, fails or cannot be reached; `gkl.client.errors` lists
    the classes. If a connection breaks, or the service is busy or unavailable, the client retries requests that are
    safe to send twice, up to three times. It never retries others.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, url: str, token: str | None = None, *, patience_seconds: float = 60) -> None:
        """Prepare a client; the first request connects.

        Args:
            url: address of the service, such as 'http://127.0.0.1:8000'.
            token: a token of `gklbench token create`, if the service asks for one.
            patience_seconds: longest time in which to retry a request; 0 for no retries.

        Raises:
            Invalid: the address, the token, or a proxy set in the environment cannot be used.
        """
        self._connection = Connection(url, token, patience_seconds=patience_seconds)
        self._uploader = Uploader(self._connection)

    @property
    def url(self) -> str:
        """The service's address, without a slash at its end."""
        return self._connection.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.http.close()

    # --- jobs --------------------------------------------------------------------------------------------------------

    def submit(
        self,
        spec: SentSpec | Mapping[str, Any],
        *,
        submitter: str | None = None,
        priority: int | None = None,
        key: str | None = None,
    ) -> JobView:
        """Submit a job.

        Args:
            spec: what to run, as a spec object or as its JSON in a dictionary.
            submitter: whom the job is for; by default the token's owner.
            priority: workers take jobs with higher priority first; only admins may set it above 0.
            key: an idempotency key of your choice: calls with the same key and spec return the same job, also from
                another process. Without a key each call creates a new job.

        Returns:
            The queued job. Its `warning` says why the job will probably fail, judging by earlier jobs.

        Raises:
            Invalid: the spec or an option cannot be used; `errors` lists each field at fault.
            Refused: the token does not allow it.
            Conflict: the key was used with another spec.
            TooManyRequests: the token's limit of queued jobs or of GPU hours is reached.
        """
        body = spec.model_dump(mode="json") if isinstance(spec, BaseTrainSpec | EvaluateSpec) else dict(spec)
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        query = _given(submitter=submitter, priority=priority)
        return self._connection.read(JobView, "POST", "/api/v1/jobs", json=body, params=query, headers=headers)

    def wait(self, job_id: int, progress: bool = True) -> list[JobView]:
        """Wait until a job has ended, and the jobs that follow it, such as a training's evaluation.

        A failed job raises no error: look at its `state` and `failure`.

        Args:
            job_id: the job's number.
            progress: whether to show a progress bar; needs tqdm.

        Returns:
            The ended job, and after it the ended jobs that followed it.

        Raises:
            NotFound: there is no such job.
            Unreachable: the service could not be reached for two minutes.
        """
        waiting, ended = [job_id], []
        while waiting:
            following = waiting.pop(0)
            with progress_bar(shown=progress) as report:
                for event in self.events(following):
                    if (found := event.of_run) is not None:
                        report(found)
            job = self.job(following)
            ended.append(job)
            waiting += job.child_ids
        return ended

    def job(self, job_id: int) -> JobView:
        """Return a job: its state, progress and results.

        Raises:
            NotFound: there is no such job.
        """
        return self._connection.read(JobView, "GET", f"/api/v1/jobs/{job_id}")

    def jobs(
        self,
        *,
        state: JobState | str | None = None,
        kind: JobKind | str | None = None,
        limit: int | None = None,
    ) -> Iterator[JobView]:
        """Iterate over jobs, the newest first. Pages are requested as you iterate.

        Args:
            state: only jobs in this state, such as 'running'.
            kind: only jobs of this kind, such as 'evaluate'.
            limit: how many at most; by default all.

        Raises:
            Invalid: there is no such state or kind. Raised, like all errors of this method, while you iterate.
        """
        left = limit
        query = _given(state=state, kind=kind)
        while left is None or left > 0:
            query["limit"] = _JOBS_PER_PAGE if left is None else min(_JOBS_PER_PAGE, left)
            page = self._connection.read(JobPage, "GET", "/api/v1/jobs", params=query)
            yield from page.jobs
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor
            left = None if left is None else left - len(page.jobs)

    def events(self, job_id: int) -> Iterator[StreamEvent]:
        """Iterate over a job's events, from the first until the job has ended.

        If the connection breaks, the client reconnects and continues after the last event. A retried job has the final
        states of its earlier runs among its events.

        Raises:
            NotFound: there is no such job.
            TooManyRequests: too many event streams are open.
            Unreachable: the service could not be reached for two minutes.
        """
        return follow(self._connection, job_id)

    def log(self, job_id: int, offset: int = 0) -> LogPart:
        """Read a job's log, from a byte on.

        Args:
            job_id: the job's number.
            offset: the byte to begin at; give the last part's `end` to continue with a growing log.

        Raises:
            NotFound: there is no such job.
        """
        answer = self._connection.send("GET", f"/api/v1/jobs/{job_id}/log", params={"offset": offset})
        return LogPart(answer.content, self._connection.number(answer, "X-Log-Size"))

    def curves(self, job_id: int) -> JobMetrics:
        """Return the points of a training's curves: the measurements of each finished epoch. Other jobs have none.

        Raises:
            NotFound: there is no such job.
        """
        query = {"format": "json"}
        return self._connection.read(JobMetrics, "GET", f"/api/v1/jobs/{job_id}/metrics", params=query)

    def cancel(self, job_id: int) -> JobView:
        """Cancel a job and the jobs that would follow it. A running job is `cancelling` until it has stopped.

        Raises:
            NotFound: there is no such job.
            Refused: the job belongs to somebody else.
            Conflict: the job has already succeeded or failed, and no job that follows it is left to cancel.
        """
        return self._connection.read(JobView, "POST", f"/api/v1/jobs/{job_id}/cancel")

    def retry(self, job_id: int) -> JobView:
        """Queue a failed or cancelled job again. It resumes from what it saved.

        Raises:
            NotFound: there is no such job.
            Refused: the job belongs to somebody else.
            Conflict: the job has neither failed nor been cancelled.
            Invalid: the job's weights have been removed.
            TooManyRequests: the token's limit of queued jobs or of GPU hours is reached.
        """
        return self._connection.read(JobView, "POST", f"/api/v1/jobs/{job_id}/retry")

    # --- weights and attacks -----------------------------------------------------------------------------------------

    def upload(self, path: Path | str, *, on_progress: Callable[[float], None] = lambda _: None) -> UploadView:
        """Upload a file of weights; resumes after a broken connection. A file that the service has is not sent again.

        Args:
            path: a safetensors file, or a state dict of torch.save.
            on_progress: called with the share that has been sent, in [0, 1].

        Returns:
            The stored file. Put its `sha256` into an evaluation's `weights`.

        Raises:
            Invalid: it is not a file of weights.
            TooManyRequests: the token's limit of stored bytes would be exceeded.
            ClientError: the file cannot be read, or is larger than the service accepts.
        """
        try:
            return self._uploader.send(Path(path), on_progress)
        except OSError as error:
            raise ClientError(f"{path} cannot be read ({error.strerror})") from error

    def attack(self, entry_id: int, examples: Path | str, *, name: str, submitter: str | None = None) -> JobView:
        """Submit adversarial examples against an entry. Each point they break lowers the entry's robust accuracy.

        Args:
            entry_id: the entry's number.
            examples: safetensors with 'adversarial' (K, channels, height, width) in [0, 1] and 'index' (K,).
            name: name of the attack.
            submitter: who found the examples; by default the token's owner.

        Returns:
            The job that checks the examples.

        Raises:
            NotFound: there is no such entry.
            Conflict: the entry accepts no examples: it was not measured here, or its verdict is provisional.
            Invalid: the file does not hold such examples.
            ClientError: the file cannot be read.
        """
        return self._send_file(f"/api/v1/entries/{entry_id}/attacks", examples, name=name, submitter=submitter)

    def transfer(self, entry_id: int, *, source: int, submitter: str | None = None) -> JobView:
        """Measure how many adversarial examples of one entry break another; `transfers` returns the result.

        As with `attack`, each point they break lowers the entry's robust accuracy.

        Args:
            entry_id: the entry on whose network the examples are tried.
            source: the entry whose examples are tried.
            submitter: whom the job is for; by default the token's owner.

        Returns:
            The job that measures the transfer.

        Raises:
            NotFound: there is no such entry.
            Conflict: the target has no weights or the source no examples here, or one of them is provisional or
                withdrawn; or the transfer has been measured already.
            Invalid: the two differ in data set or threat model.
            TooManyRequests: the token's limit of queued jobs is reached.
        """
        return self._connection.read(
            JobView,
            "POST",
            f"/api/v1/entries/{entry_id}/transfers",
            json={"source": source},
            params=_given(submitter=submitter),
        )

    def report(
        self,
        certificate: Path | str,
        *,
        name: str,
        architecture: str = "",
        publication: Publication | None = None,
        submitter: str | None = None,
    ) -> JobView:
        """Submit the certificate of a network that the service cannot build, for an entry marked *reported*.

        Args:
            certificate: a file of `gkl.Verdict.save_certificate` about all test images of a data set.
            name: the network's name on the board.
            architecture: the network's architecture, in your own words.
            publication: what the board shows about the network.
            submitter: owner of the entry; by default the token's owner.

        Returns:
            The job that checks the certificate. Once it has succeeded, its `entry_id` is the entry.

        Raises:
            Invalid: the file is not such a certificate.
            Refused: the token does not allow it.
            ClientError: the file cannot be read.
        """
        shown = {} if publication is None else publication.model_dump(mode="json", exclude_defaults=True)
        query = {"name": name, "architecture": architecture, "submitter": submitter} | shown
        return self._send_file("/api/v1/reports", certificate, **query)

    def _send_file(self, address: str, path: Path | str, **query: Any) -> JobView:
        headers = {"Content-Type": "application/octet-stream"}
        try:
            with Path(path).open("rb") as file:
                return self._connection.read(
                    JobView,
                    "POST",
                    address,
                    content=file,
                    params=_given(**query),
                    headers=headers,
                    timeout=_SEND_SECONDS,
                )
        except OSError as error:
            raise ClientError(f"{path} cannot be read ({error.strerror})") from error

    # --- results -----------------------------------------------------------------------------------------------------

    def boards(self) -> list[BoardSummary]:
        """Return all leaderboards, without their entries."""
        return self._connection.read(list[BoardSummary], "GET", "/api/v1/leaderboards")

    def board(self, dataset: str, threat_model: str, **view: str | int | None) -> Board:
        """Return all entries of a leaderboard, or of a filtered view of it.

        Args:
            dataset: the board's data set, such as 'cifar10'.
            threat_model: the board's name: 'Linf' for the data set's usual epsilon, 'Linf-0.1' for another.
            view: filters and order, as in the address of the board's page: `q`, `family`, `data`, `epsilon`, `venue`,
                `year`, `provenance`, `unreliable`, `loss`, `sort`.

        Raises:
            NotFound: there is no such board.
            Invalid: there is no such filter or order.
        """
        query: dict[str, Any] = {"limit": _ENTRIES_PER_PAGE} | _given(**view)
        found: list[EntryView] = []
        while True:
            page = self._connection.read(BoardDetail, "GET", _board_address(dataset, threat_model), params=query)
            found += page.entries
            if page.next_cursor is None:
                about = {name: getattr(page, name) for name in BoardSummary.model_fields}
                return Board(BoardSummary(**about), found)
            query["cursor"] = page.next_cursor

    def export(
        self, dataset: str, threat_model: str, file_format: ExportFormat, **view: str | int | None
    ) -> Iterator[bytes]:
        """Export a leaderboard as a file, and iterate over its pieces.

        Args:
            dataset: see `board`.
            threat_model: see `board`.
            file_format: the file's format; 'robustbench' has the entries as RobustBench's `model_info` JSON.
            view: see `board`.

        Raises:
            NotFound: there is no such board. Raised, like all errors of this method, while you iterate.
        """
        path = f"{_board_address(dataset, threat_model)}/export/{file_format}"
        with self._connection.stream(path, _given(**view)) as response:
            yield from response.iter_bytes()

    def entry(self, entry_id: int) -> EntryDetail:
        """Return an entry of a leaderboard, with all external attacks that were confirmed.

        Raises:
            NotFound: there is no such entry.
        """
        pages = self._connection.pages(f"/api/v1/entries/{entry_id}", {})
        first, *others = [self._connection.parse(EntryDetail, page) for page in pages]
        attacks = [attack for page in (first, *others) for attack in page.external_attacks]
        return first.model_copy(update={"external_attacks": attacks, "next_cursor": None})

    def model(self, model_id: int) -> ModelDetail:
        """Return a model with its entries on boards and all its evaluations, the newest first.

        Raises:
            NotFound: there is no such model.
        """
        pages = self._connection.pages(f"/api/v1/models/{model_id}", {})
        first, *others = [self._connection.parse(ModelDetail, page) for page in pages]
        evaluations = [evaluation for page in (first, *others) for evaluation in page.evaluations]
        return first.model_copy(update={"evaluations": evaluations, "next_cursor": None})

    def points(self, measured: EntryView | EvaluationView) -> Iterator[PointView]:
        """Iterate over the outcome of each point, in the order of the test images. Pages are requested as you iterate.

        Args:
            measured: an entry, for outcomes that include external attacks; or an evaluation, for those of it alone.

        Raises:
            NotFound: there is no certificate: the entry was imported, or its verdict is provisional. Raised, like all
                errors of this method, while you iterate.
        """
        for page in self._connection.pages(f"{_address(measured)}/points", {}):
            yield from self._connection.parse(list[PointView], page)

    def classes(self, entry_id: int) -> list[ClassView]:
        """Return an entry's accuracies on each class, the least robust class first.

        Raises:
            NotFound: there is no such entry, or it has no certificate.
        """
        return self._connection.read(list[ClassView], "GET", f"/api/v1/entries/{entry_id}/classes")

    def certificate(self, measured: EntryView | EvaluationView, path: Path | str) -> Path:
        """Download a certificate: the outcome of each point, and the adversarial example of each broken one.

        `gklbench verify` checks it again. An existing file is replaced only once the new one is complete.

        Args:
            measured: an entry, for a certificate that includes external attacks; or an evaluation, for its own.
            path: the file to write.

        Returns:
            The path.

        Raises:
            NotFound: there is no certificate: the entry was imported, or its verdict is provisional.
            ClientError: the download was damaged on the way, or the file cannot be written.
        """
        path = Path(path)
        download_certificate(self._connection, f"{_address(measured)}/certificate", path)
        return path

    def board_points(
        self, dataset: str, threat_model: str, *, order: Literal["hardest", "easiest"] = "hardest"
    ) -> Iterator[BoardPointView]:
        """Iterate over a board's test images, ordered by how many of the networks measured here get them wrong.

        Args:
            dataset: the board's data set.
            threat_model: the board's name, such as 'Linf'.
            order: 'hardest' for the images first that most networks get wrong, 'easiest' for the reverse.

        Raises:
            NotFound: there is no such board. Raised, like all errors of this method, while you iterate.
        """
        path = f"{_board_address(dataset, threat_model)}/points"
        for page in self._connection.pages(path, {"order": order}):
            yield from self._connection.parse(BoardPointsView, page).points

    def compare(self, *entry_ids: int) -> ComparisonView:
        """Compare 2 to 4 entries: whether one is better than another, and in which fields their specs differ.

        Args:
            entry_ids: the entries' numbers.

        Raises:
            NotFound: there is no such entry.
            Invalid: fewer than 2 or more than 4 entries are given.
        """
        return self._connection.read(ComparisonView, "GET", "/api/v1/compare", params={"entries": list(entry_ids)})

    def transfers(self, entry_id: int) -> Iterator[TransferView]:
        """Iterate over the transfers from and to an entry, the newest first: examples of one entry tried on another.

        Raises:
            NotFound: there is no such entry. Raised, like all errors of this method, while you iterate.
        """
        for page in self._connection.pages(f"/api/v1/entries/{entry_id}/transfers", {}):
            yield from self._connection.parse(list[TransferView], page)

    # --- the service -------------------------------------------------------------------------------------------------

    def workers(self) -> list[WorkerView]:
        """Return the workers, ordered by host, with device, state and current job."""
        pages = self._connection.pages("/api/v1/workers", {"limit": 1000})
        return [worker for page in pages for worker in self._connection.parse(list[WorkerView], page)]

    def recipes(self) -> dict[str, TrainSpec | DistillSpec]:
        """Return the service's recipes by name, ready to be changed and submitted."""
        return self._connection.read(dict[str, TrainSpec | DistillSpec], "GET", "/api/v1/recipes")

    def whoami(self) -> IdentityView:
        """Return the token's owner, its scope and limits, and how much of them is used."""
        return self._connection.read(IdentityView, "GET", "/api/v1/me")


def _given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def _board_address(dataset: str, threat_model: str) -> str:
    return f"/api/v1/leaderboards/{quote(dataset, safe='')}/{quote(threat_model, safe='')}"


def _address(measured: EntryView | EvaluationView) -> str:
    return f"/api/v1/{'entries' if isinstance(measured, EntryView) else 'evaluations'}/{measured.id}"
