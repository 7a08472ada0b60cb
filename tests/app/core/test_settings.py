from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.core.settings import Settings

DOCUMENT = Path(__file__).parents[3] / "docs" / "settings.md"


def test_every_setting_is_documented_with_its_default() -> None:
    text = DOCUMENT.read_text()
    for name, field in Settings.model_fields.items():
        default = field.default if field.default != "" else "empty"
        assert f"| `GKLBENCH_{name.upper()}` | `{default}` | {field.description} |" in text


def test_the_environment_gives_another_process_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_dir=Path("somewhere"), port=1234, lease_seconds=77.5)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    absolute = Path("somewhere").resolve()
    folders = {"datasets_dir": str(absolute / "datasets"), "models_dir": str(absolute / "models")}
    assert Settings() == settings.model_copy(update={"data_dir": absolute, **folders})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lease_seconds": 10}, "at least three times"),
        ({"broker_url": "amqp://localhost"}, "Redis-protocol server"),
        ({"port": 70_000}, "less than or equal to 65535"),
    ],
)
def test_settings_that_contradict_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Settings(**changes)


def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GKLBENCH_PORT", "eighty")
    with pytest.raises(ValidationError):
        Settings()
