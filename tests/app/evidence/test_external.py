"""Whose adversarial examples are tried against a new network."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select

from app.boards import strongest_certificates
from app.db.database import Database
from app.db.tables import Entry
from gkl.outcome import Flag
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel
from tests.app.boards.test_results import measure, sha, train


def new_network(**changes: object) -> EvaluateSpec:
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.2))
    spec = EvaluateSpec(
        name="new", dataset="digits", architecture="small_cnn", weights=sha("new"), evaluation=evaluation
    )
    return spec.model_copy(update=changes)


def test_the_most_robust_other_networks_of_the_board_are_tried(database: Database) -> None:
    lie = Flag(name="wrong_gradients", sentence="At 40% of 64 points the gradient is another's.", value=0.4)
    for name, robust in (("weak", 90), ("strong", 200), ("barred", 300), ("gone", 250), ("early", 240), ("new", 260)):
        weights = train(database, name)
        measure(
            database,
            weights,
            robust=robust,
            flags=[lie] if name == "barred" else [],
            certificate_sha256=sha(f"certificate of {name}"),
            provisional=name == "early",
        )
    measure(database, train(database, "other budget"), robust=100, epsilon=0.1, certificate_sha256=sha("0.1"))
    measure(database, train(database, "without"), robust=100, certificate_sha256=None)
    with database.writing() as session:
        gone = session.scalars(select(Entry).where(Entry.name == "gone")).one()
        gone.withdrawn_at, gone.withdrawn_reason = datetime.now(UTC), "a mistake"

    def tried(spec: EvaluateSpec) -> list[str]:
        with database.reading() as session:
            return strongest_certificates.of_others(session, spec)

    by_certificate = {sha(f"certificate of {name}"): name for name in ("weak", "strong", "barred", "new")}
    # Neither its own, nor what is not final, nor what was withdrawn; what cannot be believed comes last.
    assert [by_certificate[found] for found in tried(new_network())] == ["strong", "weak", "barred"]
    other = {"evaluation": Evaluation(threat_model=ThreatModel(epsilon=0.1))}
    assert tried(new_network(**other)) == [sha("0.1")]
    assert tried(new_network(dataset="fashion_mnist")) == []
