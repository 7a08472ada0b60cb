"""The files that a run starts from: what earlier attempts saved, weights, certificates and examples."""

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
    """Of one attempt."""

    store: ArtifactStore
    claim: jobs.Claim
    directory: Path
    """The run's own, where they are brought."""
    log: RunLog
    patience: Patience

    def fetch(self) -> tuple[str | None, str | None]:
        """Bring what the run starts from into its directory.

        Returns:
            The file names of given weights, which may be a teacher's, and of what an earlier run converted them to.
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
        # Converted or not: the run makes sure that these are the weights that its verdict will name.
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
        """What earlier attempts saved. A file that is gone is computed again."""
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
        """The examples, and what they are to be merged with."""
        known = self.patience.write(lambda session: external.certificate_for(session, self.claim.job_id))
        self.store.fetch(known, self.directory / CERTIFICATE_FILE)
        self.store.fetch(spec.examples, self.directory / EXAMPLES_FILE)

    def _fetch_for_transfer(self, spec: TransferSpec) -> None:
        """The certificate whose examples are replayed, and the one of the network that they are tried on."""
        known = self.patience.write(lambda session: transfers.certificate_of_target(session, self.claim.job_id))
        self.store.fetch(known, self.directory / CERTIFICATE_FILE)
        self.store.fetch(spec.source, self.directory / SOURCE_FILE)

    def others(self) -> list[Path]:
        """Files of other models' certificates, read where they are stored: they may be large."""
        spec = self.claim.spec
        if not isinstance(spec, EvaluateSpec) or spec.evaluation.protocol not in PROTOCOLS_WITH_MORE:
            return []
        if self.claim.shard_index is not None:
            # The job that merges the shards tries them.
            return []
        known = self.patience.write(lambda session: strongest_certificates.of_others(session, spec))
        paths = []
        for sha256 in known:
            try:
                paths.append(self.store.path(sha256))
            except NotFound:
                _log.warning("job %d: the certificate %s of another entry is gone", self.claim.job_id, sha256)
        return paths
