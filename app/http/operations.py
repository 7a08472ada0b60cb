"""Operation ids of the OpenAPI document, which generated clients use as function names."""

from __future__ import annotations

from fastapi.routing import APIRoute

OF_CLIENT = {
    "attack_entry": "attack",
    "compare_entries": "compare",
    "cancel_job": "cancel",
    "create_job": "submit",
    "export_leaderboard": "export",
    "follow_job": "events",
    "get_board_points": "board_points",
    "get_certificate": "certificate",
    "get_classes": "classes",
    "get_curves": "curves",
    "get_entry": "entry",
    "get_identity": "whoami",
    "get_job": "job",
    "get_leaderboard": "board",
    "get_log": "log",
    "get_model": "model",
    "get_points": "points",
    "list_jobs": "jobs",
    "list_leaderboards": "boards",
    "list_recipes": "recipes",
    "list_transfers": "transfers",
    "list_workers": "workers",
    "measure_transfer": "transfer",
    "report_verdict": "report",
    "retry_job": "retry",
    "send_weights": "upload",
}
"""Handler's name -> the method of `gkl.client.Client` that does the same."""


def operation_id(route: APIRoute) -> str:
    """The name of the client's method if there is one, else of the handler: unique, and independent of the path."""
    return OF_CLIENT.get(route.name, route.name)
