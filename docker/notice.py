"""Writes the NOTICE of a Python environment: each installed package with its version and license.

    python docker/notice.py > NOTICE

Reads the packages' own metadata, with the standard library alone. The Dockerfiles run it in the environment
that they have just installed, so that an image's list is that of its own packages.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, distributions

_HEADER = """\
NOTICE

This environment contains GKL Bench, licensed under Apache-2.0 (http://www.apache.org/licenses/LICENSE-2.0), and the
packages below, each under its own license as its metadata names it. The texts of the licenses are beside the packages:
in the `.dist-info` folder of each, where its authors ship them.
"""
_IMAGE = """\
In a container image, the licenses of CPython and of Debian's packages are in /usr/local/lib/python3*/LICENSE.txt and
/usr/share/doc/*/copyright.
"""
# A license in words of a classifier: the last part, such as 'MIT License'.
_CLASSIFIER = "License :: "


def license_of(package: Distribution) -> str:
    """The license as the package names it: an SPDX expression where it has one, else its own words.

    Never guessed from a text: a package that names none in its metadata is listed with the files to read.
    """
    metadata = package.metadata
    for expression in metadata.get_all("License-Expression") or []:
        return _line(expression)
    for text in metadata.get_all("License") or []:
        # Some packages put the whole text of their license here.
        if "\n" not in text.strip() and (words := _line(text)) and words.upper() != "UNKNOWN" and len(words) <= 80:
            return words
    classifiers = [
        c.removeprefix(_CLASSIFIER) for c in metadata.get_all("Classifier") or [] if c.startswith(_CLASSIFIER)
    ]
    named = [c.rpartition(" :: ")[2] for c in classifiers if c != "OSI Approved"]
    if named:
        return ", ".join(named)
    files = metadata.get_all("License-File") or []
    return f"see {', '.join(files)}" if files else "not stated in its metadata"


def table() -> list[tuple[str, str, str]]:
    """(name, version, license) of every installed package, by name, each once."""
    found: dict[str, tuple[str, str, str]] = {}
    for package in distributions():
        name = package.metadata["Name"]
        # The first on the path is the one that Python imports.
        found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), (name, package.version, license_of(package)))
    return [found[name] for name in sorted(found)]


def notice() -> str:
    rows = [("package", "version", "license"), *table()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {version:<{widths[1]}}  {words}" for name, version, words in rows]
    return "\n".join([_HEADER, _IMAGE, *lines, ""])


def _line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.stdout.write(notice())
