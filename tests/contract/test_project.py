"""What a project has beside its code: license, citation, version, hooks, and the list of what an image contains."""

from __future__ import annotations

import datetime
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, version
from pathlib import Path
from typing import Any

import check_jsonschema
import pytest
import yaml
from jsonschema import Draft7Validator
from packaging.utils import canonicalize_name

import gkl
from tests.contract.test_installations import distributions, requirements
from tests.docker import dockerfiles

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGES = [ROOT / "docker/api.Dockerfile", ROOT / "docker/worker.Dockerfile"]
LICENSE_TEXT = "http://www.apache.org/licenses/LICENSE-2.0"


def citation() -> dict[str, Any]:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    # A date stays a text, as the schema has it.
    found: dict[str, Any] = yaml.load(text, Loader=yaml.BaseLoader)
    return found


def changelog() -> list[str]:
    return re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def labels(path: Path) -> dict[str, str]:
    *_, last = dockerfiles.read(path)
    pairs = (word.split("=", 1) for label in last.all("LABEL") for word in shlex.split(label.text))
    return {key.removeprefix("org.opencontainers.image."): value for key, value in pairs}


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["version"] == gkl.__version__
    assert citation()["version"] == gkl.__version__
    assert [labels(path)["version"] for path in IMAGES] == [gkl.__version__] * len(IMAGES)


def test_the_changelog_dates_each_version() -> None:
    unreleased, newest, *_ = changelog()
    assert unreleased == "Unreleased"
    found = re.fullmatch(r"(\S+) \((\d{4}-\d{2}-\d{2})\)", newest)
    assert found is not None
    assert found[1] == gkl.__version__
    assert found[2] == citation()["date-released"]
    assert datetime.date.fromisoformat(found[2])


def test_the_citation_is_valid() -> None:
    schema = Path(check_jsonschema.__file__).parent / "builtin_schemas/vendor/citation-file-format.json"
    validator = Draft7Validator(yaml.safe_load(schema.read_text(encoding="utf-8")))
    assert [error.message for error in validator.iter_errors(citation())] == []
    assert [error.message for error in validator.iter_errors(citation() | {"license": "Apache-1"})] != []


def test_the_citation_names_software_and_paper() -> None:
    found = citation()
    assert {"cff-version", "message", "title", "authors", "version", "date-released", "license"} <= found.keys()
    (paper,) = found["references"]
    assert paper["title"] == "Generalized Kullback-Leibler Divergence Loss"
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert paper["authors"][0]["family-names"] == "Cui"


def test_one_license_everywhere() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("SPDX-License-Identifier: Apache-2.0\n")
    assert LICENSE_TEXT in text
    assert PROJECT["license"] == citation()["license"] == "Apache-2.0"
    assert [labels(path)["licenses"] for path in IMAGES] == ["Apache-2.0"] * len(IMAGES)
    assert PROJECT["license-files"] == ["LICENSE"]


@pytest.mark.parametrize("extras", [("server", "s3", "otel"), ("worker", "s3", "otel")], ids=["api", "worker"])
def test_the_notice_lists_every_package_of_an_image(extras: tuple[str, ...]) -> None:
    """By the script that the Dockerfiles run, in an environment that has more than the image."""
    done = subprocess.run([sys.executable, ROOT / "docker/notice.py"], capture_output=True, text=True, check=True)
    header, _, rows = done.stdout.partition("\npackage ")
    assert LICENSE_TEXT in header
    listed = {canonicalize_name(row[0]): row[1:] for line in rows.splitlines()[1:] if (row := line.split(maxsplit=2))}
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    needed = distributions(requirements(*extras)) & {
        canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)
    }
    assert {"sqlalchemy", "celery", "fsspec"} <= needed
    assert needed <= listed.keys()
    assert all(listed[name][0] == version(name) for name in needed)
    assert listed["sqlalchemy"][1] == "MIT"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("License-Expression: MIT\nLicense: BSD", "MIT"),
        ("License: BSD", "BSD"),
        ("License: MIT License\n        Permission is granted\nClassifier: License :: OSI Approved :: MIT", "MIT"),
        ("License: UNKNOWN\nLicense-File: LICENSE", "see LICENSE"),
        ("Classifier: License :: OSI Approved\nClassifier: Topic :: Security", "not stated in its metadata"),
    ],
)
def test_a_license_is_what_the_metadata_says(tmp_path: Path, fields: str, expected: str) -> None:
    folder = tmp_path / "example-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: example\nVersion: 1.0\n{fields}\n")
    assert runpy.run_path(str(ROOT / "docker/notice.py"))["license_of"](Distribution.at(folder)) == expected


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_an_image_makes_its_notice_after_everything_is_installed(path: Path) -> None:
    build, *_ = dockerfiles.read(path)
    steps = [f"{i.name} {i.text}" for i in build.instructions]
    assert steps[-1] == "RUN /opt/gklbench/bin/python notice.py > /opt/gklbench/NOTICE"
    assert "COPY docker/notice.py ./" in steps


def test_the_hooks_download_nothing() -> None:
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (local,) = content["repos"]
    assert local["repo"] == "local"
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    check = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ncheck: ")[2].partition("\n\n")[0]
    programs = {hook["entry"].split()[0] for hook in local["hooks"]}
    assert programs == {f".venv/bin/{name}" for name in re.findall(r"\$\(BIN\)/(\w+)", check)}
