"""The client asks for transfers and lists them."""

from __future__ import annotations

import pytest

from app.db.database import Database
from gkl.client import Client, Conflict, Invalid, NotFound
from tests.app.boards.test_results import measure, train

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_they_are_asked_for_and_listed(client: Client, database: Database) -> None:
    for number in (1, 2, 3):
        measure(database, train(database, f"net {number}"), robust=200, certificate_sha256=str(number) * 64)
    there = client.transfer(2, source=1, submitter="Ada")
    back, other = client.transfer(1, source=2), client.transfer(2, source=3)
    assert [each.job_id for each in client.transfers(2)] == [other.id, back.id, there.id]
    first, second = client.transfers(1)
    assert (first.source_id, first.target_id, first.submitter) == (2, 1, "anonymous")
    assert (second.source_id, second.target_id, second.submitter) == (1, 2, "Ada")
    assert (first.state, first.counts, first.attacks, first.is_current) == ("queued", None, [], True)
    pair = client.compare(1, 3).transfers[0]
    assert (pair.can_be_measured, pair.measured, pair.sentence) == (True, None, None)
    with pytest.raises(Conflict, match="is already measuring this"):
        client.transfer(2, source=1)
    with pytest.raises(Invalid, match="is the target itself"):
        client.transfer(2, source=2)
    with pytest.raises(NotFound):
        next(client.transfers(9))
