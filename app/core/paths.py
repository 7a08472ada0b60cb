"""The path under which the service is served (GKLBENCH_ROOT_PATH), such as /bench; empty at the root of a host.

A proxy may forward requests with or without that prefix. Both are treated alike: `under_root` gives every request the
whole path, and Starlette's `root_path` says which part of it is the prefix.
"""

from __future__ import annotations

from starlette.types import Scope


def under_root(scope: Scope, root: str) -> Scope:
    """The request's scope as if the proxy had forwarded the whole path."""
    if not root or scope["type"] != "http":
        return scope
    path: str = scope["path"]
    if path == root:
        path = f"{root}/"
    elif not path.startswith(f"{root}/"):
        path = root + path
    return {**scope, "path": path, "root_path": root}


def own_path(scope: Scope) -> str:
    """The path without the prefix.

    >>> own_path({"path": "/bench/jobs", "root_path": "/bench"}), own_path({"path": "/jobs"})
    ('/jobs', '/jobs')
    """
    path: str = scope["path"]
    return path.removeprefix(root_of(scope))


def root_of(scope: Scope) -> str:
    """The prefix; empty at the root of a host."""
    # A mount adds its own path to `root_path` and keeps the original in `app_root_path`.
    root: str = scope.get("app_root_path", scope.get("root_path", ""))
    return root
