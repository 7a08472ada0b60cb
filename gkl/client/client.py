"""The REST client: a method for each thing that can be asked of a service."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx2

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
from gkl.client.connection import Connection
from gkl.client.errors import ClientError, Unreachable
from gkl.client.events import StreamEvent, follow
from gkl.client.logs import LogPart
from gkl.client.uploads import Uploader
from gkl.files import atomic_path
from gkl.progress_bar import progress_bar
from gkl.spec import EvaluateSpec, Publication, TrainSpec

_JOBS_OF_A_PAGE = 200
_ENTRIES_OF_A_PAGE = 1000
_SEND_SECONDS = 600
# RFC 9530.
_DIGEST = "Repr-Digest"

ExportFormat = Literal["csv", "json", "robustbench", "bibtex", "latex"]


class Client:
    """A service, asked with one token.

    Every method raises a `ClientError` if the service refuses, fails or cannot be reached; `gkl.client.errors` lists
    the classes. The client retries requests that are safe to send twice, up to three times, if a connection breaks or
    the service says that it is busy or away. It never retries others.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, url: str, token: str | None = None, *, patience_seconds: float = 60) -> None:
        """Connects to nothing yet.

        Args:
            url: address of the service, such as 'http://127.0.0.1:8000'.
            token: of `gklbench token create`, where the service asks for one.
            patience_seconds: how long to retry a request at most; 0 for one try.

        Raises:
            Invalid: the address, the token or a proxy of the environment cannot be used.
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
        spec: TrainSpec | EvaluateSpec | Mapping[str, Any],
        *,
        submitter: str | None = None,
        priority: int | None = None,
        key: str | None = None,
    ) -> JobView:
        """Send a job.

        Args:
            spec: what to run, as a model or as the JSON of one.
            submitter: for whom it is; by default whose the token is.
            priority: jobs of higher priority are taken first; above 0 is for admins.
            key: a text of your own; the same key and spec give the same job, also from another process. Without it
                each call makes a new job.

        Returns:
            The job, queued. Its `warning` says why it can hardly succeed, as far as earlier jobs tell.

        Raises:
            Invalid: the spec or an option cannot be used; `errors` has each field.
            Refused: the token does not allow it.
            Conflict: the key came with another spec.
            TooManyRequests: more jobs are queued, or more hours used, than the token may.
        """
        body = spec.model_dump(mode="json") if isinstance(spec, TrainSpec | EvaluateSpec) else dict(spec)
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        query = _given(submitter=submitter, priority=priority)
        return self._connection.read(JobView, "POST", "/api/v1/jobs", json=body, params=query, headers=headers)

    def wait(self, job_id: int, progress: bool = True) -> list[JobView]:
        """Follow a job, and the jobs that follow from it, until all of them have ended.

        A job that fails is an answer and no error: look at its `state` and `failure`.

        Args:
            job_id: the job's number.
            progress: whether to show a bar, where tqdm is installed.

        Returns:
            The job as it ended, and after it those that followed: of a training its evaluation.

        Raises:
            NotFound: there is no such job.
            Unreachable: the service was away for two minutes.
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
        """How a job is.

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
        """Jobs, the newest first, asked for page by page as they are read.

        Args:
            state: only those in this state, such as 'running'.
            kind: only those of this kind, such as 'evaluate'.
            limit: how many at most; by default all.

        Raises:
            Invalid: there is no such state or kind. As all errors of this method, when the first job is read.
        """
        left = limit
        query = _given(state=state, kind=kind)
        while left is None or left > 0:
            query["limit"] = _JOBS_OF_A_PAGE if left is None else min(_JOBS_OF_A_PAGE, left)
            page = self._connection.read(JobPage, "GET", "/api/v1/jobs", params=query)
            yield from page.jobs
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor
            left = None if left is None else left - len(page.jobs)

    def events(self, job_id: int) -> Iterator[StreamEvent]:
        """The job's events from the first to its last state; reconnects and goes on where it was cut off.

        Of a job that was retried also the states in which it had ended before.

        Raises:
            NotFound: there is no such job.
            TooManyRequests: too many streams are open already.
            Unreachable: the service was away for two minutes.
        """
        return follow(self._connection, job_id)

    def log(self, job_id: int, offset: int = 0) -> LogPart:
        """What the runs of a job wrote.

        Args:
            job_id: the job's number.
            offset: the byte to begin at, to go on with a log that grows.

        Raises:
            NotFound: there is no such job.
        """
        answer = self._connection.send("GET", f"/api/v1/jobs/{job_id}/log", params={"offset": offset})
        return LogPart(answer.content, self._connection.number(answer, "X-Log-Size"))

    def curves(self, job_id: int) -> JobMetrics:
        """The points of a training's curves: what each finished epoch measured; none of other jobs.

        Raises:
            NotFound: there is no such job.
        """
        query = {"format": "json"}
        return self._connection.read(JobMetrics, "GET", f"/api/v1/jobs/{job_id}/metrics", params=query)

    def cancel(self, job_id: int) -> JobView:
        """Cancel a job, and what it is to be followed by. One that runs is `cancelling` until it has stopped.

        Raises:
            NotFound: there is no such job.
            Refused: it is somebody else's.
            Conflict: it has already succeeded or failed, and nothing that follows from it is left to cancel.
        """
        return self._connection.read(JobView, "POST", f"/api/v1/jobs/{job_id}/cancel")

    def retry(self, job_id: int) -> JobView:
        """Queue a failed or cancelled job again; it goes on from what it saved.

        Raises:
            NotFound: there is no such job.
            Refused: it is somebody else's.
            Conflict: it has neither failed nor been cancelled.
            Invalid: its weights are not there any more.
            TooManyRequests: more jobs are queued, or more hours used, than the token may.
        """
        return self._connection.read(JobView, "POST", f"/api/v1/jobs/{job_id}/retry")

    # --- weights and attacks -----------------------------------------------------------------------------------------

    def upload(self, path: Path | str, *, on_progress: Callable[[float], None] = lambda _: None) -> UploadView:
        """Send a file of weights, in pieces, each from where the last one broke off. What is there is not sent again.

        Args:
            path: of the file: safetensors, or a state dict of torch.save.
            on_progress: is called with the share that has been sent.

        Returns:
            The file as it is stored; an evaluation names it by its `sha256`.

        Raises:
            Invalid: it is no file of weights.
            TooManyRequests: more would be kept than the token may.
            ClientError: the file cannot be read, or it is larger than the service accepts.
        """
        try:
            return self._uploader.send(Path(path), on_progress)
        except OSError as error:
            raise ClientError(f"{path} cannot be read ({error.strerror})") from error

    def attack(self, entry_id: int, examples: Path | str, *, name: str, submitter: str | None = None) -> JobView:
        """Send adversarial examples against an entry; what breaks points that stand lowers its robust accuracy.

        Args:
            entry_id: the entry's number.
            examples: safetensors with 'adversarial' (K, channels, height, width) in [0, 1] and 'index' (K,).
            name: what the attack is called.
            submitter: who found them; by default whose the token is.

        Returns:
            The job that checks them.

        Raises:
            NotFound: there is no such entry.
            Conflict: the entry takes none: it was not measured here, or its verdict is provisional.
            Invalid: it is no such file.
            ClientError: the file cannot be read.
        """
        return self._send_file(f"/api/v1/entries/{entry_id}/attacks", examples, name=name, submitter=submitter)

    def transfer(self, entry_id: int, *, source: int, submitter: str | None = None) -> JobView:
        """Measure how many adversarial examples of one entry break another. `transfers` has what was found.

        What breaks points that stand lowers the entry's robust accuracy, as `attack` does.

        Args:
            entry_id: the entry on whose network they are tried.
            source: the entry whose examples they are.
            submitter: for whom it is; by default whose the token is.

        Returns:
            The job that measures it.

        Raises:
            NotFound: there is no such entry.
            Conflict: one of them has no weights or no examples here, is provisional or withdrawn; or it is measured
                already.
            Invalid: they are of other data sets or threat models.
            TooManyRequests: more jobs are queued than the token may.
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
        """Send the certificate of a network that the service cannot build, for a row that says *reported*.

        Args:
            certificate: what `gkl.Verdict.save_certificate` wrote, about all test images of a data set.
            name: what the network is called.
            architecture: what it is, in your own words.
            publication: what the board is to say of it.
            submitter: whose it is; by default whose the token is.

        Returns:
            The job that checks it. Its `entry_id` is the row, once it has succeeded.

        Raises:
            Invalid: it is no such certificate.
            Refused: the token does not allow it.
            ClientError: the file cannot be read.
        """
        said = {} if publication is None else publication.model_dump(mode="json", exclude_defaults=True)
        query = {"name": name, "architecture": architecture, "submitter": submitter} | said
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
        """The leaderboards that there are."""
        return self._connection.read(list[BoardSummary], "GET", "/api/v1/leaderboards")

    def board(self, dataset: str, threat_model: str, **view: str | int | None) -> Board:
        """All entries of a leaderboard, or of a view of one, in its order.

        Args:
            dataset: such as 'cifar10'.
            threat_model: the board's name: 'Linf' for the usual budget, 'Linf-0.1' for another.
            view: filters and order, as in the address of the board's page: `q`, `family`, `data`, `epsilon`, `venue`,
                `year`, `provenance`, `unreliable`, `loss`, `sort`.

        Raises:
            NotFound: there is no such board.
            Invalid: there is no such filter or order.
        """
        query: dict[str, Any] = {"limit": _ENTRIES_OF_A_PAGE} | _given(**view)
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
        """A leaderboard as a file, piece by piece.

        Args:
            dataset: as of `board`.
            threat_model: as of `board`.
            file_format: how to write it.
            view: as of `board`.

        Raises:
            NotFound: there is no such board. As all errors of this method, when the first piece is read.
        """
        path = f"{_board_address(dataset, threat_model)}/export/{file_format}"
        with self._connection.stream(path, _given(**view)) as response:
            yield from response.iter_bytes()

    def entry(self, entry_id: int) -> EntryDetail:
        """An entry of a leaderboard, with all external attacks that held.

        Raises:
            NotFound: there is no such entry.
        """
        pages = self._connection.pages(f"/api/v1/entries/{entry_id}", {})
        first, *others = [self._connection.parse(EntryDetail, page) for page in pages]
        attacks = [attack for page in (first, *others) for attack in page.external_attacks]
        return first.model_copy(update={"external_attacks": attacks, "next_cursor": None})

    def model(self, model_id: int) -> ModelDetail:
        """A model, with its place on each board and all its evaluations, the newest first.

        Raises:
            NotFound: there is no such model.
        """
        pages = self._connection.pages(f"/api/v1/models/{model_id}", {})
        first, *others = [self._connection.parse(ModelDetail, page) for page in pages]
        evaluations = [evaluation for page in (first, *others) for evaluation in page.evaluations]
        return first.model_copy(update={"evaluations": evaluations, "next_cursor": None})

    def points(self, measured: EntryView | EvaluationView) -> Iterator[PointView]:
        """What became of each point, in the order of the test images, asked for page by page as they are read.

        Args:
            measured: an entry, with what external attacks broke; or an evaluation alone.

        Raises:
            NotFound: it has no certificate: it was imported, or its verdict is provisional. As all errors of this
                method, when the first point is read.
        """
        for page in self._connection.pages(f"{_address(measured)}/points", {}):
            yield from self._connection.parse(list[PointView], page)

    def classes(self, entry_id: int) -> list[ClassView]:
        """How an entry does on each class, the least robust first.

        Raises:
            NotFound: there is no such entry, or it has no certificate.
        """
        return self._connection.read(list[ClassView], "GET", f"/api/v1/entries/{entry_id}/classes")

    def certificate(self, measured: EntryView | EvaluationView, path: Path | str) -> Path:
        """Download the proof: what each point came to, and the adversarial example of each broken one.

        `gklbench verify` re-checks it. A file that is there is replaced once the new one is whole.

        Args:
            measured: an entry, with the examples of external attacks; or an evaluation alone.
            path: the file to write.

        Returns:
            The path.

        Raises:
            NotFound: it has no certificate: it was imported, or its verdict is provisional.
            ClientError: what came is not what the service has, or the file cannot be written.
        """
        path, tries = Path(path), self._connection.tries("GET")
        while True:
            try:
                self._download(measured, path)
            except OSError as error:
                raise ClientError(f"{path} cannot be written ({error.strerror})") from error
            except Unreachable:
                # Another try than those of the request: this connection broke while the file came.
                if not (self._connection.has_answered and tries.wait()):
                    raise
            else:
                return path

    def _download(self, measured: EntryView | EvaluationView, path: Path) -> None:
        with (
            self._connection.stream(f"{_address(measured)}/certificate", {}) as response,
            atomic_path(path) as part,
        ):
            announced = re.fullmatch(r"sha-256=:([A-Za-z0-9+/=]{44}):", response.headers.get(_DIGEST, ""))
            if announced is None:
                raise self._connection.stranger(response)
            if _write(response, part) != announced[1]:
                raise ClientError(f"the certificate came damaged, and {path} was not written; try again")

    def board_points(
        self, dataset: str, threat_model: str, *, order: Literal["hardest", "easiest"] = "hardest"
    ) -> Iterator[BoardPointView]:
        """The test images of a leaderboard, by how many of the networks that were measured there lose them.

        Args:
            dataset: of the board.
            threat_model: its name, such as 'Linf'.
            order: the images first that most networks lose, or those that fewest do.

        Raises:
            NotFound: there is no such board. As all errors of this method, when the first point is read.
        """
        path = f"{_board_address(dataset, threat_model)}/points"
        for page in self._connection.pages(path, {"order": order}):
            yield from self._connection.parse(BoardPointsView, page).points

    def compare(self, *entry_ids: int) -> ComparisonView:
        """Whether one of 2 to 4 entries is better than another, and in what their specs differ.

        Args:
            entry_ids: the entries' numbers.

        Raises:
            NotFound: there is no such entry.
            Invalid: these are not 2 to 4.
        """
        return self._connection.read(ComparisonView, "GET", "/api/v1/compare", params={"entries": list(entry_ids)})

    def transfers(self, entry_id: int) -> Iterator[TransferView]:
        """What adversarial examples of other entries do to an entry, and its own to others, the newest first.

        Raises:
            NotFound: there is no such entry. When the first one is read.
        """
        for page in self._connection.pages(f"/api/v1/entries/{entry_id}/transfers", {}):
            yield from self._connection.parse(list[TransferView], page)

    # --- the service -------------------------------------------------------------------------------------------------

    def workers(self) -> list[WorkerView]:
        """The workers, by host: on what device, doing what."""
        pages = self._connection.pages("/api/v1/workers", {"limit": 1000})
        return [worker for page in pages for worker in self._connection.parse(list[WorkerView], page)]

    def recipes(self) -> dict[str, TrainSpec]:
        """The service's recipes by name, ready to be changed and sent."""
        return self._connection.read(dict[str, TrainSpec], "GET", "/api/v1/recipes")

    def whoami(self) -> IdentityView:
        """Whose the token is, what it may use, and what it does."""
        return self._connection.read(IdentityView, "GET", "/api/v1/me")


def _given(**options: Any) -> dict[str, Any]:
    """Those that are not left out."""
    return {name: value for name, value in options.items() if value is not None}


def _board_address(dataset: str, threat_model: str) -> str:
    return f"/api/v1/leaderboards/{quote(dataset, safe='')}/{quote(threat_model, safe='')}"


def _address(measured: EntryView | EvaluationView) -> str:
    return f"/api/v1/{'entries' if isinstance(measured, EntryView) else 'evaluations'}/{measured.id}"


def _write(response: httpx2.Response, path: Path) -> str:
    """Returns the sha256 of what came, in base64 as a digest's header has it."""
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for piece in response.iter_bytes():
            hasher.update(piece)
            file.write(piece)
    return base64.b64encode(hasher.digest()).decode()
