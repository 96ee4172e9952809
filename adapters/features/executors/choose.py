"""Choose an executor by name."""

from __future__ import annotations

from headkit.adapters.errors import DependencyMissing, HeadkitError

from .job import Executor

EXECUTORS = ("local", "ray")


def choose_executor(name: str) -> Executor:
    """Return the executor called ``name``.

    Raises:
        HeadkitError: There is no such executor.
        DependencyMissing: The executor needs a package that is not installed.
    """
    if name == "local":
        from .local import extract_locally

        return extract_locally
    if name == "ray":
        DependencyMissing.check("ray.data", "the executor 'ray'", "headkit[ray]")
        from .ray import extract_with_ray

        return extract_with_ray
    raise HeadkitError(f"executor is {name!r}, expected one of {', '.join(EXECUTORS)}")
