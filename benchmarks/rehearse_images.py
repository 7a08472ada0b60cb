"""What the Dockerfiles install, installed without a container engine: do their steps work, and what comes of them?

    python benchmarks/rehearse_images.py [api] [worker] [--python python3.13]

Reads each Dockerfile's first stage and does its steps in a temporary folder in place of the image's root: a Python
environment of its own in place of the base image's, COPY from what .dockerignore lets in, RUN by the shell with the
stage's ARG and ENV. Then runs the last stage's entry point, and asserts that every package has the version of
requirements.lock, that torch is in the worker's environment and not in the API's, and that what an installed package
needs beside its code (migrations, templates, static files) is there: the schema is made and the API answers. The steps
of the last stage (users, Debian's compiler) are not done: they need to be root of a system of their own.

The worker's takes minutes and about 7 GB below the temporary directory (TMPDIR), which are removed at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from packaging.requirements import Requirement

from tests.docker import dockerfiles

ROOT = Path(__file__).parents[1]
# Where an image keeps what it was given, as our Dockerfiles have it.
_ENVIRONMENT, _BUILD = "/opt/gklbench", "/build"


def rehearse(name: str, python: str, root: Path) -> None:
    build, *_, last = dockerfiles.read(ROOT / f"docker/{name}.Dockerfile")
    base = root / "base"
    subprocess.run([python, "-m", "venv", base], check=True)
    environment = os.environ | build.environment()
    environment["PATH"] = f"{base / 'bin'}:{os.environ['PATH']}"
    environment["VIRTUAL_ENV"] = here(environment["VIRTUAL_ENV"], root)
    folder = Path(here(_BUILD, root))
    folder.mkdir()
    for instruction in build.instructions:
        began = time.monotonic()
        if instruction.name == "COPY":
            *sources, target = instruction.text.split()
            copy([ROOT / source for source in sources], folder / target)
        elif instruction.name == "RUN":
            print(f"  RUN {instruction.text[:100]}", flush=True)
            subprocess.run(["sh", "-ec", here(instruction.text, root)], cwd=folder, env=environment, check=True)
            print(f"      {time.monotonic() - began:.0f} s")
    installed = root / _ENVIRONMENT.strip("/")
    check(name, last, installed)
    size = sum(path.lstat().st_size for path in installed.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"  {name}: {size / 1e6:,.0f} MB in {len(packages(installed))} packages")


def here(text: str, root: Path) -> str:
    """A path of the image as it is below `root`, where a path begins."""
    return re.sub(rf"(?<![\w/.])(?={_ENVIRONMENT}|{_BUILD})", str(root), text)


def copy(sources: list[Path], target: Path) -> None:
    for source in sources:
        if source.is_dir():
            # What .dockerignore leaves out of the folders that it lets in.
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(source, target)


def check(name: str, last: dockerfiles.Stage, installed: Path) -> None:
    found = packages(installed)
    wrong = {
        package: (version, locked()[package])
        for package, version in found.items()
        if package != "gklbench" and version not in locked().get(package, [])
    }
    assert not wrong, f"not as in the lock: {wrong}"
    assert ("torch" in found) is (name == "worker")
    (entrypoint,) = last.all("ENTRYPOINT")
    program = installed / "bin" / entrypoint.words({})[0]
    with tempfile.TemporaryDirectory() as data:
        environment = {"PATH": "/usr/bin:/bin", "GKLBENCH_DATA_DIR": data, "HOME": data}
        for arguments in (["--help"], ["check-settings"], ["migrate"]):
            subprocess.run([program, *arguments], env=environment, cwd=data, check=True, stdout=subprocess.DEVNULL)
        page = (
            "from fastapi.testclient import TestClient; from app.main import create_app;"
            "from app.core.settings import Settings;"
            "client = TestClient(create_app(Settings()), base_url='http://127.0.0.1', client=('127.0.0.1', 50000));"
            "assert [client.get(path).status_code for path in ('/', '/docs', '/healthz')] == [200] * 3"
        )
        # One of RobustBench's networks: its package and PyTorch are there, and go together.
        network = (
            "import worker.runner, worker.celery_app;"
            "from gkl.models import build_model;"
            "assert sum(p.numel() for p in build_model('resnet_18', 'cifar10').parameters()) > 10**7"
        )
        code = network if name == "worker" else page
        # -P: from the environment, and not from a checkout in which this runs.
        command = [installed / "bin/python", "-P", "-c", code]
        subprocess.run(command, env=environment, cwd=data, check=True)


def packages(installed: Path) -> dict[str, str]:
    code = (
        "from importlib.metadata import distributions as d; print(*(f'{p.name}=={p.version}' for p in d()), sep='\\n')"
    )
    done = subprocess.run([installed / "bin/python", "-Pc", code], capture_output=True, text=True, check=True)
    pairs = (line.split("==") for line in done.stdout.split())
    return {canonical(name): version for name, version in pairs}


def locked() -> dict[str, list[str]]:
    """Versions by name; some names have one for each version of Python."""
    versions: dict[str, list[str]] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        requirement = Requirement(line)
        versions.setdefault(canonical(requirement.name), []).append(str(requirement.specifier).removeprefix("=="))
    return versions


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", default=["api", "worker"], help="api, worker, or both")
    parser.add_argument("--python", default=sys.executable, help="the Python to make environments with")
    options = parser.parse_args()
    for name in options.images:
        print(f"{name}:")
        with tempfile.TemporaryDirectory(prefix="rehearsal") as folder:
            rehearse(name, options.python, Path(folder))


if __name__ == "__main__":
    main()
