"""What a machine has, and a remedy for what it has not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import doctor
from app.cli.doctor import Finding, examine
from app.cli.main import cli
from app.core.settings import Settings
from gkl.catalog import DATASETS
from tests.databases import either_database
from tests.servers import limited_proxy, served

NOBODY = "http://127.0.0.1:1"


def findings(settings: Settings, url: str = NOBODY) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(settings, url)}


@pytest.fixture
def alone(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def test_each_thing_is_looked_for_and_each_no_has_a_remedy(alone: Settings) -> None:
    found = findings(alone)
    assert {"Python", "torch", "GPU", "C compiler", "data directory", "service", "published weights"} <= found.keys()
    assert {f"data of {dataset.title}" for dataset in DATASETS.values()} <= found.keys()
    assert all(finding.remedy for finding in found.values() if finding.state != "yes")
    assert found["data of Digits"].state == "yes"
    assert found["data of CIFAR-10"].state == "without"
    assert str(alone.effective_datasets_dir / "cifar10") in found["data of CIFAR-10"].remedy
    assert (found["service"].state, "gklbench up" in found["service"].remedy) == ("without", True)
    assert not list((alone.data_dir).iterdir()), "nothing is left"


@either_database
def test_a_service_is_asked_how_it_is(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # This machine is asked directly.
    monkeypatch.setenv("HTTP_PROXY", NOBODY)
    with served(settings) as url:
        assert findings(settings, url)["service"].state == "yes"
    with served(settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})) as url:
        told = findings(settings, url)["service"]
        assert told.state == "no"
        assert "broker" in told.found
        with limited_proxy(url, status=502) as proxy:
            assert "is not GKL Bench" in findings(settings, proxy.url)["service"].found
    assert findings(settings, "nonsense")["service"].state == "without"


def test_what_is_not_installed_is_named_with_its_extra(alone: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise doctor.PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "version", version)
    found = findings(alone)
    assert found["torch"].remedy == "pip install 'gklbench[worker]'"
    assert "GPU" not in found, "what torch would be asked for is left out"


def test_a_directory_that_cannot_be_written_and_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("cc", "gcc", "clang") else real(name))
    found = findings(Settings(data_dir=tmp_path / "file"))
    assert found["data directory"].state == "no"
    assert found["C compiler"].state == "without"


def test_published_weights_are_counted(tmp_path: Path) -> None:
    models = tmp_path / "models" / "cifar10" / "Linf"
    models.mkdir(parents=True)
    (models / "Some.pt").write_bytes(b"")
    settings = Settings(data_dir=tmp_path / "data", models_dir=str(tmp_path / "models"))
    assert findings(settings)["published weights"].found.startswith("1 in ")


def test_the_command_prints_them(tmp_path: Path) -> None:
    arguments = ["doctor", "--data-dir", str(tmp_path / "data"), "--url", NOBODY]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0
    assert "GKL Bench" in shown.output
    assert "data of CIFAR-10" in shown.output
    told = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)
    assert [finding["what"] for finding in told][:2] == ["GKL Bench", "Python"]
    assert told[0].keys() == {"what", "state", "found", "remedy"}
    (tmp_path / "file").write_text("")
    arguments[2] = str(tmp_path / "file")
    assert CliRunner().invoke(cli, arguments).exit_code == 1
