"""What a request handler works with, made once per process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.artifacts import ArtifactStore
from app.broker import make_celery, publisher
from app.database import Database
from app.outbox import Publish, publish_pending
from app.settings import Settings


@dataclass(frozen=True)
class Service:
    settings: Settings
    database: Database
    store: ArtifactStore
    publish: Publish

    @classmethod
    def from_settings(cls, settings: Settings) -> Service:
        """Does not connect to anything."""
        return cls(
            settings=settings,
            database=Database(settings.effective_database_url),
            store=ArtifactStore(settings.data_dir),
            publish=publisher(make_celery(settings)),
        )

    def publish_pending(self) -> None:
        publish_pending(self.database, self.publish)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]
