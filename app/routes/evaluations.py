"""Evaluations, point by point, and their certificates."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import FileResponse, Response

from app.accounts.principals import Principal
from app.boards import results
from app.boards.certificates import Picture, picture, points_of
from app.boards.views import evaluation_view
from app.core.errors import NotFound
from app.http.access import Reader, charge
from app.http.paging import link_next
from app.http.parameters import MAX_ID
from app.http.service import Service, ServiceDep
from gkl.answers import EvaluationView, PointView

router = APIRouter(prefix="/evaluations", tags=["evaluations"])

# Reading a point takes a tenth of the time of reading an entry.
_POINTS_OF_A_ROW = 10

PointNumber = Annotated[int, Path(ge=0, le=MAX_ID, description="Index among the test images, from 0.")]
EvaluationId = Annotated[int, Path(ge=1, le=MAX_ID, description="An evaluation's number.")]


@dataclass(frozen=True)
class PointPage:
    """The requested range of points."""

    request: Request
    response: Response
    cursor: Annotated[int, Query(ge=0, le=MAX_ID, description="The number of the first point.")] = 0
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000

    def points_of(self, service: Service, reader: Principal, sha256: str) -> list[PointView]:
        charge(service, reader, rows=self.limit // _POINTS_OF_A_ROW)
        found, following = points_of(service.store.path(sha256), first=self.cursor, limit=self.limit)
        link_next(self.request, self.response, following)
        return found


@router.get("/{evaluation_id}", summary="Look at an evaluation")
def get_evaluation(service: ServiceDep, evaluation_id: EvaluationId) -> EvaluationView:
    with service.database.reading() as session:
        return evaluation_view(results.evaluation(session, evaluation_id))


@router.get(
    "/{evaluation_id}/certificate",
    summary="Fetch the certificate",
    response_class=FileResponse,
    responses={
        200: {
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            "description": "The safetensors file.",
        }
    },
)
def get_certificate(service: ServiceDep, evaluation_id: EvaluationId) -> FileResponse:
    """The proof: an adversarial example for every broken point. `gklbench verify FILE --weights W` re-checks it."""
    return certificate_response(service, _certificate(service, evaluation_id), f"evaluation-{evaluation_id}")


def certificate_response(service: Service, sha256: str, name: str) -> FileResponse:
    """The file with its digest (RFC 9530), so that clients can check that they received all of it."""
    digest = base64.b64encode(bytes.fromhex(sha256)).decode()
    return FileResponse(
        service.store.path(sha256),
        media_type="application/octet-stream",
        filename=f"{name}.safetensors",
        headers={"X-Content-Type-Options": "nosniff", "Repr-Digest": f"sha-256=:{digest}:"},
    )


@router.get("/{evaluation_id}/points", summary="List the outcome of each point")
def get_points(
    service: ServiceDep, reader: Reader, evaluation_id: EvaluationId, asked: Annotated[PointPage, Depends()]
) -> list[PointView]:
    """More than 1000 at once count as more than one request."""
    return asked.points_of(service, reader, _certificate(service, evaluation_id))


@router.get(
    "/{evaluation_id}/points/{point}/{which}.png",
    summary="Look at a broken point",
    response_class=Response,
    responses={
        200: {
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
            "description": "The picture, a pixel for a pixel.",
        }
    },
)
def get_picture(
    request: Request, service: ServiceDep, evaluation_id: EvaluationId, point: PointNumber, which: Picture
) -> Response:
    """The clean image, the adversarial one, or their difference: gray means none, stretched to the whole range."""
    return picture_response(request, service, _certificate(service, evaluation_id), point, which)


def picture_response(request: Request, service: Service, sha256: str, point: int, which: Picture) -> Response:
    """The picture with an ETag of the certificate, since an entry's certificate can change."""
    headers = {
        "ETag": f'"{sha256[:32]}-{point}-{which}"',
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(picture(service.store.path(sha256), point, which), media_type="image/png", headers=headers)


def _certificate(service: Service, evaluation_id: int) -> str:
    with service.database.reading() as session:
        found = results.evaluation(session, evaluation_id)
    if found.certificate_sha256 is None:
        state = "its verdict is still provisional" if found.is_provisional else "an earlier version measured it"
        raise NotFound(f"evaluation {evaluation_id} has no certificate: {state}")
    return found.certificate_sha256
