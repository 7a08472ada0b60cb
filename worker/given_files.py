"""Fetches the files that a run starts from: files of earlier attempts, weights, certificates and examples."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from app import jobs
from app.boards import strongest_certificates
from app.core.errors import NotFound
from app.evidence import external, transfers
from app.jobs import job_files
from app.store import ArtifactStore
from gkl.spec import (
    PROTOCOLS_WITH_MORE,
    PUBLISHED_WEIGHTS,
    EvaluateSpec,
    ExternalSpec,
    ReportSpec,
    TransferSpec,
    named_weights,
)
from worker.patience import Patience
from worker.run_log import RunLog
from worker.runner import CERTIFICATE_FILE, EXAMPLES_FILE, SOURCE_FILE

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GivenFiles:
    """The input files of one attempt."""

    store: ArtifactStore
    claim: jobs.Claim
    directory: Path
    """The run's directory, into which the files are copied."""
    log: RunLog
    patience: Patience

    def fetch(self) -> tuple[str | None, str | None]:
        """Copy the run's input files into its directory.

        Returns:
            The file names of the given weights, which may be a teacher's, and of their converted form, if an earlier
            run converted them; None for each that does not exist.
        """
        self._fetch_what_was_left()
        spec = self.claim.spec
        if isinstance(spec, ReportSpec):
            self.store.fetch(spec.certificate, self.directory / CERTIFICATE_FILE)
            return None, None
        if isinstance(spec, ExternalSpec):
            self._fetch_for_check(spec)
        if isinstance(spec, TransferSpec):
            self._fetch_for_transfer(spec)
        named = named_weights(spec)
        if named is None or named.weights == PUBLISHED_WEIGHTS:
            return None, None
        # Needed even if a converted form exists: the run checks that these are the weights that its result names.
        self.store.fetch(named.weights, self.directory / "weights")
        known = self.patience.write(lambda session: job_files.converted(session, named.weights))
        if known is None:
            return "weights", None
        try:
            self.store.fetch(known, self.directory / "converted.safetensors")
        except NotFound:
            return "weights", None
        return "weights", "converted.safetensors"

    def _fetch_what_was_left(self) -> None:
        """Fetch the files that earlier attempts saved. The run computes missing ones again."""
        left = self.patience.write(lambda session: job_files.resume_files(session, self.claim.job_id))
        for file in left:
            try:
                self.store.fetch(file.sha256, self.directory / file.file)
            except NotFound:
                _log.warning("job %d: %s is gone or damaged", self.claim.job_id, file.file)
                said = (
                    f"--- {file.file}, which an earlier attempt saved, is gone or damaged; it is computed again ---\n"
                )
                self.log.add(said.encode())

    def _fetch_for_check(self, spec: ExternalSpec) -> None:
        """Fetch the examples, and the certificate into which they are merged."""
        known = self.patience.write(lambda session: external.certificate_for(session, self.claim.job_id))
        self.store.fetch(known, self.directory / CERTIFICATE_FILE)
        self.store.fetch(spec.examples, self.directory / EXAMPLES_FILE)

    def _fetch_for_transfer(self, spec: TransferSpec) -> None:
        """Fetch the certificate with the examples to try (source), and the certificate of the target network."""
        known = self.patience.write(lambda session: transfers.certificate_of_target(session, self.claim.job_id))
        self.store.fetch(known, self.directory / CERTIFICATE_FILE)
        self.store.fetch(spec.source, self.directory / SOURCE_FILE)

    def others(self) -> list[Path]:
        """Paths of other models' certificates in the store; they are not copied, because they may be large."""
        spec = self.claim.spec
        if not isinstance(spec, EvaluateSpec) or spec.evaluation.protocol not in PROTOCOLS_WITH_MORE:
            return []
        if self.claim.shard_index is not None:
            # Only the job that merges the shards tries other models' examples.
            return []
        known = self.patience.write(lambda session: strongest_certificates.of_others(session, spec))
        paths = []
        for sha256 in known:
            try:
                paths.append(self.store.path(sha256))
            except NotFound:
                _log.warning("job %d: the certificate %s of another entry is gone", self.claim.job_id, sha256)
        return paths
