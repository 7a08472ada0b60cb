"""The names of operations in the OpenAPI document, which are those of the client's methods."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from pydantic import ValidationError

from app.core.settings import Settings
from app.http.operations import OF_CLIENT
from app.main import create_app
from gkl.client import Client

# What the client does with several requests, or with none.
OWN = {"close", "wait"}


def operations(**settings: Any) -> list[str]:
    paths = create_app(Settings(**settings)).openapi()["paths"]
    return [operation["operationId"] for path in paths.values() for operation in path.values()]


def methods() -> set[str]:
    return {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}


def test_each_operation_has_a_plain_name_of_its_own() -> None:
    found = operations()
    assert len(found) == len(set(found))
    assert not [name for name in found if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)]


def test_each_method_of_the_client_is_an_operation_and_no_other_operation_has_its_name() -> None:
    assert methods() - OWN == set(OF_CLIENT.values())
    assert set(OF_CLIENT.values()) <= set(operations())


def test_each_method_of_the_client_is_documented() -> None:
    for name in methods():
        method = getattr(Client, name)
        text = inspect.getdoc(method) or ""
        assert text, name
        parameters = [each for each in inspect.signature(method).parameters if each != "self"]
        if len(parameters) > 1:
            assert all(f"\n    {parameter}: " in text for parameter in parameters), name


def test_the_document_says_where_it_holds_and_whom_to_ask() -> None:
    document = create_app(Settings(contact="ada@lab.example", root_path="/bench")).openapi()
    assert document["info"]["contact"] == {"email": "ada@lab.example"}
    assert document["servers"] == [{"url": "/bench"}]
    document = create_app(Settings(contact="https://lab.example/bench")).openapi()
    assert document["info"]["contact"] == {"url": "https://lab.example/bench"}
    assert document["servers"] == [{"url": "/"}]
    assert "contact" not in create_app(Settings()).openapi()["info"]
    with pytest.raises(ValidationError, match="GKLBENCH_CONTACT must be an e-mail address"):
        Settings(contact="Ada")
