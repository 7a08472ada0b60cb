"""Weights in pieces (tus), what is kept of them, for how long, and for whom."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.numpy import save
from sqlalchemy import update

from app import jobs
from app.accounts.tokens import Limits
from app.core.errors import Conflict
from app.core.settings import Settings
from app.db.database import Database, database_now
from app.db.tables import FileKind, PartialUpload, Upload
from app.http.service import Service
from app.jobs import job_files
from app.main import create_app
from app.maintenance.cleanup import clean
from app.store import StoredFile
from app.weights import uploads
from gkl.answers import JobState, Scope
from gkl.client import Client, ClientError
from gkl.client.uploads import Uploader
from gkl.models import build_model
from gkl.spec import EvaluateSpec
from tests.app.routes.test_api import assert_problem
from tests.cluster import Cluster
from tests.databases import either_database
from tests.local import local_client, serving
from tests.specs import tiny_train_spec
from tests.tokens import bearer, token_of
from tests.weights import weights_of

PIECE = {"Content-Type": "application/offset+octet-stream"}
FILE = weights_of("tiny_cnn", "digits")
SHA256 = hashlib.sha256(FILE).hexdigest()


def begin(client: TestClient, size: int = len(FILE), **headers: str) -> httpx2.Response:
    return client.post("/api/v1/uploads", headers={"Upload-Length": str(size), "Tus-Resumable": "1.0.0"} | headers)


def send(client: TestClient, address: str, piece: bytes, at: int, **headers: str) -> httpx2.Response:
    return client.patch(address, content=piece, headers=PIECE | {"Upload-Offset": str(at)} | headers)


def offset_of(client: TestClient, address: str) -> int:
    return int(client.head(address).headers["upload-offset"])


def files(settings: Settings) -> list[Path]:
    """What lies in the data directory beside the store's lock."""
    return [path for path in settings.data_dir.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_file_comes_in_pieces(client: TestClient, settings: Settings) -> None:
    begun = begin(client)
    assert (begun.status_code, begun.headers["upload-offset"]) == (201, "0")
    assert begun.headers["tus-resumable"] == "1.0.0"
    address = begun.headers["location"]
    first = send(client, address, FILE[:3000], 0)
    assert (first.status_code, first.headers["upload-offset"]) == (204, "3000")
    looked = client.head(address)
    assert (looked.status_code, looked.headers["upload-length"]) == (200, str(len(FILE)))
    assert (looked.headers["upload-offset"], looked.headers["cache-control"]) == ("3000", "no-store")
    assert looked.headers["upload-expires"].endswith("GMT")
    last = send(client, address, FILE[3000:], 3000)
    assert (last.status_code, last.json()["sha256"]) == (200, SHA256)
    assert last.headers["content-location"] == f"/api/v1/weights/{SHA256}"
    assert client.get(f"/api/v1/weights/{SHA256}").json()["size_bytes"] == len(FILE)
    # For whoever missed the answer.
    assert offset_of(client, address) == len(FILE)
    again = send(client, address, b"", len(FILE))
    assert (again.status_code, again.json()) == (200, last.json())
    assert_problem(send(client, address, b"x", 3), 409, "this upload is already complete"[1:])
    assert [path.name for path in files(settings)] == [SHA256]


def test_the_same_file_again_is_kept_once(client: TestClient, settings: Settings, database: Database) -> None:
    for _ in range(2):
        assert send(client, begin(client).headers["location"], FILE, 0).json()["sha256"] == SHA256
    assert client.post("/api/v1/weights", content=FILE).json()["sha256"] == SHA256
    with database.reading() as session:
        assert session.query(Upload).count() == 1
    assert len(files(settings)) == 1


def test_a_service_that_died_before_it_answered_finishes_with_an_empty_piece(
    client: TestClient, service: Service
) -> None:
    address = begin(client).headers["location"]
    pieces = service.settings.data_dir / "uploads" / address.rpartition("/")[2]
    pieces.parent.mkdir(exist_ok=True)
    pieces.write_bytes(FILE)
    assert offset_of(client, address) == len(FILE)
    assert send(client, address, b"", len(FILE)).json()["sha256"] == SHA256


@pytest.mark.parametrize(
    ("headers", "piece", "status", "says"),
    [
        ({"Upload-Offset": "1"}, FILE, 409, "has 0 bytes; continue at that offset, not at 1"),
        ({"Upload-Offset": "0"}, FILE + b"x", 422, "more bytes than the"),
        ({"Upload-Offset": "0", "Content-Type": "application/octet-stream"}, FILE, 415, "application/offset"),
        ({"Upload-Offset": "-1"}, FILE, 422, "digits 0 to 9"),
        ({"Upload-Offset": "+0"}, FILE, 422, "digits 0 to 9"),
        ({"Upload-Offset": "0.0"}, FILE, 422, "digits 0 to 9"),
        ({"Upload-Offset": "0_0"}, FILE, 422, "digits 0 to 9"),
        ({"Upload-Offset": "many"}, FILE, 422, "digits 0 to 9"),
        ({}, FILE, 422, "field required"),
    ],
)
def test_pieces_that_do_not_fit(
    client: TestClient, headers: dict[str, str], piece: bytes, status: int, says: str
) -> None:
    address = begin(client).headers["location"]
    answer = client.patch(address, content=piece, headers=PIECE | headers)
    assert_problem(answer, status, says)
    assert send(client, address, FILE, offset_of(client, address)).status_code == 200, "it can go on"


@pytest.mark.parametrize("length", ["0", "-1", "x", "", str(2**63), "9" * 5000, "+5", "5.0", "1_0"])
def test_lengths_that_cannot_be(client: TestClient, length: str) -> None:
    answer = client.post("/api/v1/uploads", headers={"Upload-Length": length})
    assert_problem(answer, 422, "pload-length")


def test_a_file_that_is_refused_leaves_nothing(client: TestClient, settings: Settings, database: Database) -> None:
    page = b"<!doctype html><title>Quota exceeded</title>" + bytes(100)
    address = begin(client, len(page)).headers["location"]
    assert_problem(send(client, address, page, 0), 422, "an HTML page")
    assert client.head(address).status_code == 404
    assert files(settings) == []
    with database.reading() as session:
        assert session.query(PartialUpload).count() == 0


def test_larger_files_than_may_be_and_than_there_is_room_for(settings: Settings) -> None:
    small = settings.model_copy(update={"max_weights_bytes": 5000})
    with serving(small) as client:
        assert begin(client, 5001).status_code == 413
    full = settings.model_copy(update={"min_free_bytes": 2**62})
    with serving(full) as client:
        assert_problem(begin(client), 507, "has no room for")
        assert_problem(client.post("/api/v1/weights", content=FILE), 507, "has no room for")


def test_two_requests_do_not_write_one_upload(client: TestClient, service: Service) -> None:
    address = begin(client).headers["location"]
    with uploads.growing(service, address.rpartition("/")[2], 0):
        assert_problem(send(client, address, FILE, 0), 409, "nother request is sending this upload")
        with pytest.raises(Conflict), uploads.growing(service, address.rpartition("/")[2], 0):
            pass


def test_an_upload_is_its_senders(visitor: TestClient, database: Database) -> None:
    ada, bob = (bearer(token_of(database, name)) for name in ("Ada", "Bob"))
    address = begin(visitor, **ada).headers["location"]
    for answer in (
        visitor.head(address, headers=bob),
        send(visitor, address, FILE, 0, **bob),
        visitor.delete(address, headers=bob),
    ):
        assert answer.status_code == 404
    assert visitor.head(address).status_code == 401
    assert send(visitor, address, FILE, 0, **ada).status_code == 200
    assert visitor.delete(f"/api/v1/weights/{SHA256}", headers=bob).status_code == 404
    assert visitor.delete(f"/api/v1/weights/{SHA256}", headers=ada).status_code == 204
    assert visitor.get(f"/api/v1/weights/{SHA256}").status_code == 404


def test_so_many_bytes_may_be_kept(visitor: TestClient, database: Database) -> None:
    limit = len(FILE) + 1000
    ada = bearer(token_of(database, "Ada", limits=Limits(upload_bytes=limit)))
    address = begin(visitor, **ada).headers["location"]
    assert_problem(begin(visitor, 2000, **ada), 429, "may store ")
    assert visitor.delete(address, headers=ada).status_code == 204
    assert send(visitor, begin(visitor, **ada).headers["location"], FILE, 0, **ada).status_code == 200
    other = save({"w": np.zeros(500, dtype=np.float32)})
    assert_problem(visitor.post("/api/v1/weights", content=other, headers=ada), 429, "DELETE /api/v1/weights/")
    assert visitor.delete(f"/api/v1/weights/{SHA256}", headers=ada).status_code == 204
    assert visitor.post("/api/v1/weights", content=other, headers=ada).status_code == 201
    assert visitor.post("/api/v1/weights", content=other, headers=ada).status_code == 201, "it is there already"
    assert_problem(begin(visitor, limit + 1, **ada), 413, "and this upload has")
    assert_problem(visitor.post("/api/v1/weights", content=bytes(limit + 1), headers=ada), 413, "and this upload has")
    endless = (bytes(limit // 50) for _ in range(100))
    assert visitor.post("/api/v1/weights", content=endless, headers=ada).status_code == 413, "stopped on the way"


def test_what_two_have_sent_stays_until_neither_wants_it(visitor: TestClient, database: Database) -> None:
    ada, bob, eve = (bearer(token_of(database, name)) for name in ("Ada", "Bob", "Eve"))
    for who in (ada, bob):
        assert visitor.post("/api/v1/weights", content=FILE, headers=who).status_code == 201
    assert visitor.delete(f"/api/v1/weights/{SHA256}", headers=eve).status_code == 404
    assert visitor.delete(f"/api/v1/weights/{SHA256}", headers=ada).status_code == 204
    assert visitor.get(f"/api/v1/weights/{SHA256}").status_code == 200
    assert visitor.delete(f"/api/v1/weights/{SHA256}", headers=ada).status_code == 404
    assert visitor.delete(f"/api/v1/weights/{SHA256}", headers=bob).status_code == 204
    assert visitor.get(f"/api/v1/weights/{SHA256}").status_code == 404


def test_what_is_sent_again_is_young_again(client: TestClient, service: Service) -> None:
    client.post("/api/v1/weights", content=FILE)
    age(service, 8)
    client.post("/api/v1/weights", content=FILE)
    clean(service)
    assert client.get(f"/api/v1/weights/{SHA256}").status_code == 200


@pytest.mark.system
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_database_that_cannot_be_written_loses_nothing_of_an_upload(client: TestClient, database: Database) -> None:
    """Another process holds it for longer than anybody waits."""
    address = begin(client).headers["location"]
    path = database.url.database
    assert path is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert send(client, address, FILE, 0).status_code == 503
        assert offset_of(client, address) == len(FILE)
        other.execute("ROLLBACK")
    assert send(client, address, b"", len(FILE)).json()["sha256"] == SHA256


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_is_told_and_nothing_is_half_written(
    client: TestClient, service: Service, tmp_path: Path
) -> None:
    address = begin(client).headers["location"]
    pieces = service.settings.data_dir / "uploads" / address.rpartition("/")[2]
    pieces.parent.mkdir(exist_ok=True)
    pieces.symlink_to("/dev/full")
    assert_problem(send(client, address, FILE, 0), 507, "disk is full")
    pieces.unlink()
    assert send(client, address, FILE, 0).status_code == 200


GIB = 1024**3


@pytest.fixture
def small_disk(settings: Settings) -> Iterator[TestClient]:
    """Of a service that may fill 1 GiB more; and of files that have 700 MiB nobody writes more than is said."""
    free = shutil.disk_usage(settings.data_dir.parent).free
    assert free > 2 * GIB
    with serving(settings.model_copy(update={"min_free_bytes": free - GIB})) as client:
        yield client


@either_database
def test_room_is_held_for_what_is_being_sent(small_disk: TestClient, service: Service) -> None:
    """And for nothing else: what was announced and never sent keeps nobody out."""
    client, size = small_disk, 700 * 1024**2
    first = begin(client, size).headers["location"]
    assert_problem(
        begin(client, size), 507, f"no room for {size} bytes besides the {size} bytes that unfinished uploads"
    )
    whole = client.post("/api/v1/weights", content=b"", headers={"Content-Length": str(size)})
    assert_problem(whole, 507, "bytes that unfinished uploads still need")
    assert client.post("/api/v1/weights", content=FILE).status_code == 201, "a small one fits beside it"
    age(service, 0.01)
    second = begin(client, size)
    assert second.status_code == 201
    assert_problem(send(client, first, FILE, 0), 507, "unfinished uploads still need")
    assert send(client, second.headers["location"], FILE, 0).status_code == 204
    assert client.delete(second.headers["location"]).status_code == 204
    assert send(client, first, FILE, 0).status_code == 204, "it goes on when there is room"
    assert send(client, first, b"", len(FILE)).status_code == 204
    age(service, 0.01)
    assert send(client, first, FILE, len(FILE)).status_code == 204
    assert_problem(begin(client, size), 507, f"besides the {size - 2 * len(FILE)} bytes that unfinished")


@either_database
def test_nothing_is_written_past_what_the_owner_keeps_free(settings: Settings) -> None:
    free = shutil.disk_usage(settings.data_dir.parent).free
    with serving(settings) as client:
        address = begin(client).headers["location"]
    with serving(settings.model_copy(update={"min_free_bytes": free + GIB})) as client:
        assert_problem(send(client, address, FILE, 0), 507, "no room")
        # Its length is not announced, so that only the bytes tell.
        assert_problem(client.post("/api/v1/weights", content=iter([FILE])), 507, "no room")
    assert not [path for path in files(settings) if path.stat().st_size]


@either_database
def test_a_submitter_has_so_many_files_under_way(settings: Settings) -> None:
    changed = settings.model_copy(update={"max_open_uploads": 3, "max_open_upload_bytes": 10_000})
    with serving(changed) as client:
        longest = begin(client, 50_000).headers["location"]
        refused = begin(client, 1)
        assert_problem(refused, 429, "has 1 unfinished upload of 50000 bytes together, and the limit is 10000 bytes")
        assert refused.headers["retry-after"]
        assert refused.json()["detail"].rstrip(".").endswith(f"DELETE {longest}")
        assert client.delete(longest).status_code == 204
        kept = [begin(client, 1000).headers["location"] for _ in range(3)]
        assert_problem(begin(client, 1), 429, "the limit is 3 files")
        assert send(client, kept[0], b"<html>" + bytes(994), 0).status_code == 422, "refused, and so ended"
        assert begin(client, 1).status_code == 201
    codes: list[int] = []
    with serving(changed) as client:
        for address in kept[1:]:
            client.delete(address)
        crowd = [threading.Thread(target=lambda: codes.append(begin(client, 1).status_code)) for _ in range(12)]
        for each in crowd:
            each.start()
        for each in crowd:
            each.join()
    assert sorted(codes) == [201] * 2 + [429] * 10, "also of those that come at once"


def test_tus_clients_are_told_what_there_is(client: TestClient) -> None:
    told = client.options("/api/v1/uploads")
    assert (told.status_code, told.headers["tus-version"]) == (204, "1.0.0")
    assert told.headers["tus-extension"] == "creation,termination,expiration"
    assert_problem(begin(client, **{"Tus-Resumable": "0.2.2"}), 412, "speaks version 1.0.0")


# --- what nothing needs goes -------------------------------------------------------------------------------------


def evaluation() -> EvaluateSpec:
    return EvaluateSpec.model_validate(
        {
            "name": "x",
            "dataset": "digits",
            "architecture": "tiny_cnn",
            "weights": SHA256,
            "evaluation": {"threat_model": {"norm": "Linf", "epsilon": 0.1}},
        }
    )


def age(service: Service, days: float) -> None:
    with service.database.writing() as session:
        then = database_now(session) - timedelta(days=days)
        session.execute(update(Upload).values(created_at=then))
        session.execute(update(PartialUpload).values(touched_at=then, created_at=then))
    for path in files(service.settings):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 86400 * days))


def test_weights_that_nothing_needs_are_removed_after_a_while(client: TestClient, service: Service) -> None:
    client.post("/api/v1/weights", content=FILE)
    address = begin(client).headers["location"]
    send(client, address, FILE[:100], 0)
    age(service, 6)
    clean(service)
    assert len(files(service.settings)) == 2, "not yet"
    age(service, 8)
    clean(service)
    assert files(service.settings) == []
    assert client.get(f"/api/v1/weights/{SHA256}").status_code == 404
    assert client.head(address).status_code == 404


def test_weights_that_a_job_needs_stay(client: TestClient, service: Service) -> None:
    client.post("/api/v1/weights", content=FILE)
    with service.database.writing() as session:
        job_id = jobs.create(session, evaluation()).id
    age(service, 30)
    clean(service)
    assert client.get(f"/api/v1/weights/{SHA256}").status_code == 200
    assert_problem(client.delete(f"/api/v1/weights/{SHA256}"), 409, "a job or a measured model needs them")
    with service.database.writing() as session:
        assert jobs.request_cancel(session, job_id).state is JobState.CANCELLED
    clean(service)
    assert client.get(f"/api/v1/weights/{SHA256}").status_code == 404
    assert files(service.settings) == []


def test_a_job_that_is_being_sent_keeps_its_weights(client: TestClient, service: Service) -> None:
    """The cleanup waits for it, or leaves them, whichever comes first."""
    client.post("/api/v1/weights", content=FILE)
    age(service, 30)
    cleaner = threading.Thread(target=clean, args=(service,))
    with service.database.writing() as session:
        jobs.create(session, evaluation())
        cleaner.start()
        cleaner.join(1)
    cleaner.join()
    assert client.get(f"/api/v1/weights/{SHA256}").status_code == 200


def test_of_jobs_at_once_for_two_architectures_one_is_taken(client: TestClient) -> None:
    """Whose the weights then are, until it has ended without a result. The service cannot read which they fit."""
    written = io.BytesIO()
    torch.save(build_model("tiny_cnn", "digits").state_dict(), written)
    weights = client.post("/api/v1/weights", content=written.getvalue()).json()["sha256"]
    specs = [
        evaluation().model_copy(update={"architecture": name, "weights": weights}) for name in ("tiny_cnn", "small_cnn")
    ]
    answers: list[httpx2.Response] = []
    together = threading.Barrier(8)

    def one(number: int) -> None:
        together.wait()
        answers.append(client.post("/api/v1/jobs", json=specs[number % 2].model_dump(mode="json")))

    crowd = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join()
    taken = [answer.json() for answer in answers if answer.status_code == 202]
    (architecture,) = {job["spec"]["architecture"] for job in taken}
    assert len(taken) == 4
    (other,) = (spec for spec in specs if spec.architecture != architecture)
    for answer in answers:
        if answer.status_code != 202:
            assert_problem(
                answer, 422, f"has not ended, with architecture {architecture!r}, not {other.architecture!r}"
            )
    for job in taken:
        assert client.post(f"/api/v1/jobs/{job['id']}/cancel").status_code == 202
    assert client.post("/api/v1/jobs", json=other.model_dump(mode="json")).status_code == 202
    assert_problem(client.post(f"/api/v1/jobs/{taken[0]['id']}/retry"), 422, "which has not ended, with architecture")


# --- over a connection that breaks -------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path, database_url: str) -> Iterator[Cluster]:
    with Cluster(tmp_path, database_url) as cluster:
        cluster.start("api")
        yield cluster


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_client_goes_on_where_a_killed_service_had_it(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save({"w": np.random.default_rng(0).random(12_000_000, dtype=np.float32)}))
    size, killed = path.stat().st_size, []

    def told(share: float) -> None:
        if share > 0.5 and not killed:
            killed.append(share)
            cluster.kill("api")
            cluster.start_unwaited("api")

    starts: list[int] = []
    go_on = Uploader._send_piece

    def counted(self: Uploader, address: str, path: Path, offset: int, told: Any) -> Any:
        starts.append(offset)
        return go_on(self, address, path, offset, told)

    monkeypatch.setattr(Uploader, "_send_piece", counted)
    monkeypatch.setattr("gkl.client.uploads._BROKEN_UPLOADS", 20)
    monkeypatch.setattr("gkl.client.uploads._RECONNECT_SECONDS", 0.2)
    with Client(cluster.url) as client:
        kept = client.upload(path, on_progress=told)
        assert kept.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert kept.size_bytes == size
        assert killed
        assert starts[0] == 0
        assert 0 < starts[-1] < size, "not from the beginning again"
        starts.clear()
        assert client.upload(path) == kept
        assert starts == [], "nothing is sent of a file that is there"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_client_gives_up_with_a_sentence(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(FILE)
    monkeypatch.setattr("gkl.client.uploads._RECONNECT_SECONDS", 0.05)
    with Client(cluster.url) as client:
        monkeypatch.setattr(Uploader, "_send_piece", lambda *_: (_ for _ in ()).throw(httpx2.ReadError("reset")))
        with pytest.raises(ClientError, match="no service answers"):
            client.upload(path)


def test_a_crowd_sends_and_removes_the_same_file(settings: Settings) -> None:
    """In any order nothing fails, and what is there in the end can be read."""
    app = create_app(settings)
    codes: list[int] = []

    def one(number: int) -> None:
        client = local_client(app, raise_server_exceptions=False)
        for _ in range(5):
            codes.append(client.post("/api/v1/weights", content=FILE).status_code)
            address = begin(client).headers["location"]
            codes.append(send(client, address, FILE, 0).status_code)
            if number % 2:
                codes.append(client.delete(f"/api/v1/weights/{SHA256}").status_code)

    crowd = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    # One for all that begins and ends the application.
    with local_client(app) as client:
        for each in crowd:
            each.start()
        for each in crowd:
            each.join()
        assert set(codes) <= {200, 201, 204, 404}, codes
        assert client.post("/api/v1/weights", content=FILE).status_code == 201
        assert client.get(f"/api/v1/weights/{SHA256}").status_code == 200


def test_weights_can_be_fetched_by_who_may(
    database: Database,
    visitor: TestClient,
) -> None:
    """Those that were trained here by anybody, those that somebody sent by them and by admins."""
    ada, bob = (bearer(token_of(database, name, Scope.SUBMIT)) for name in ("Ada", "Bob"))
    root = bearer(token_of(database, "root", Scope.ADMIN))
    assert visitor.post("/api/v1/weights", content=FILE, headers=ada).status_code == 201
    address = f"/api/v1/weights/{SHA256}/file"
    for headers in (bob, {}):
        assert_problem(visitor.get(address, headers=headers), 404, "none were trained here, or sent by you")
    for headers in (ada, root):
        fetched = visitor.get(address, headers=headers)
        assert (fetched.status_code, fetched.content) == (200, FILE)
        assert fetched.headers["content-disposition"] == f'attachment; filename="weights-{SHA256[:16]}.safetensors"'
    with database.writing() as session:
        job = jobs.create(session, tiny_train_spec(), submitter="Bob")
        stored = StoredFile(SHA256, len(FILE))
        job_files.add_file(session, job.id, FileKind.WEIGHTS, number=1, file="weights.safetensors", stored=stored)
    assert visitor.get(address).content == FILE, "as every certificate can be checked by anybody"
    assert_problem(visitor.get(f"/api/v1/weights/{'0' * 64}/file"), 404, "No weights with sha256")


def test_what_was_sent_while_the_service_was_open_is_not_for_everybody_later(
    client: TestClient,
    visitor: TestClient,
) -> None:
    """Then nobody had a name, and a reader without a token has none either."""
    assert client.post("/api/v1/weights", content=FILE).status_code == 201
    assert client.get(f"/api/v1/weights/{SHA256}/file").content == FILE
    assert_problem(visitor.get(f"/api/v1/weights/{SHA256}/file"), 404, "none were trained here, or sent by you")
