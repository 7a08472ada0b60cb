"""Reads a compose file as Docker Compose does: interpolation, merge keys, profiles. Only what our files use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MAIN, WORKERS, REMOTE = (
    ROOT / name for name in ("docker-compose.yml", "docker/compose.worker.yml", "docker/compose.remote-workers.yml")
)
ENV_EXAMPLE, WORKER_ENV_EXAMPLE = ROOT / ".env.example", ROOT / "docker/worker.env.example"

# $$, ${NAME}, ${NAME:-default}, ${NAME:?sentence}; neither defaults nor sentences hold braces.
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>[A-Z_][A-Z0-9_]*)(?::(?P<kind>[-?])(?P<rest>[^{}]*))?\})")
_ASSIGNMENT = re.compile(r"(?P<commented># )?(?P<name>[A-Z_][A-Z0-9_]*)=(?P<value>.*)")


class Unset(Exception):
    """A variable without which the file cannot be used."""


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """
    >>> interpolate("${A} ${B:-b} ${A:?why} $$A", {"A": "1"})
    '1 b 1 $A'
    >>> interpolate("${B:?run docker/make-env}", {"B": ""})
    Traceback (most recent call last):
    tests.docker.compose_file.Unset: B: run docker/make-env
    """

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        given = variables.get(match["name"], "")
        if match["kind"] == "-":
            return given or match["rest"]
        if match["kind"] == "?" and not given:
            raise Unset(f"{match['name']}: {match['rest']}")
        return given

    rest = _VARIABLE.sub("", text)
    if "$" in rest:
        raise ValueError(f"an interpolation that this reader does not know: {text}")
    return _VARIABLE.sub(value, text)


def strings(node: Any) -> Iterator[str]:
    """Every string below a node, keys left out: Compose interpolates values only."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for child in node.values():
            yield from strings(child)
    elif isinstance(node, list):
        for child in node:
            yield from strings(child)


def variables_in(path: Path) -> set[str]:
    """The variables that the file takes from its environment."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = {match["name"] for text in strings(document) for match in _VARIABLE.finditer(text) if match["name"]}
    for service in document["services"].values():
        names |= {name for name, value in service.get("environment", {}).items() if value is None}
    return names


def load(path: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """The document with every value put in. A variable of a service's environment without a value is handed on."""

    def walk(node: Any) -> Any:
        if isinstance(node, str):
            return interpolate(node, variables)
        if isinstance(node, dict):
            return {key: walk(child) for key, child in node.items()}
        return [walk(child) for child in node] if isinstance(node, list) else node

    document: dict[str, Any] = walk(yaml.safe_load(path.read_text(encoding="utf-8")))
    for service in document["services"].values():
        environment = service.get("environment", {})
        service["environment"] = {
            name: str(variables[name] if value is None else value)
            for name, value in environment.items()
            if value is not None or name in variables
        }
    return document


def services_of(document: dict[str, Any], profiles: set[str]) -> dict[str, dict[str, Any]]:
    """The services that exist where these profiles are on."""
    return {
        name: service
        for name, service in document["services"].items()
        if "profiles" not in service or profiles & set(service["profiles"])
    }


def assignments(path: Path, *, commented: bool) -> dict[str, str]:
    """NAME=value of a file like .env; with `commented` also the ones behind a `# `."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _ASSIGNMENT.fullmatch(line)
        if match and (commented or not match["commented"]):
            assert match["name"] not in found, f"{match['name']} stands twice in {path.name}"
            found[match["name"]] = match["value"]
    return found


def secrets_filled_in(path: Path) -> dict[str, str]:
    """What a filled-in copy of an example gives."""
    return {name: value.replace("changethis", "5ec2e7") for name, value in assignments(path, commented=False).items()}
