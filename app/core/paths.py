"""Where the service is: at the root of a name, or under a path of it (GKLBENCH_ROOT_PATH), such as /bench.

A proxy may hand a request on with that path in front of the service's own, or without it. Both come to the same here:
`under_root` gives every request the whole path, and Starlette's `root_path` says how much of it is not the service's.
"""

from __future__ import annotations

from starlette.types import Scope


def under_root(scope: Scope, root: str) -> Scope:
    """The request as if the proxy had handed the whole path on."""
    if not root or scope["type"] != "http":
        return scope
    path: str = scope["path"]
    if path == root:
        path = f"{root}/"
    elif not path.startswith(f"{root}/"):
        path = root + path
    return {**scope, "path": path, "root_path": root}


def own_path(scope: Scope) -> str:
    """The path within the service.

    >>> own_path({"path": "/bench/jobs", "root_path": "/bench"}), own_path({"path": "/jobs"})
    ('/jobs', '/jobs')
    """
    path: str = scope["path"]
    return path.removeprefix(root_of(scope))


def root_of(scope: Scope) -> str:
    """What stands before it; empty at the root of a name."""
    # A mount adds its own path to `root_path`, and keeps the first one here.
    root: str = scope.get("app_root_path", scope.get("root_path", ""))
    return root
