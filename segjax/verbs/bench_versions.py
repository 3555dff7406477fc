"""What a row of a benchmark must say beside its figures: versions and flags."""

import importlib.metadata
import os
import platform

import jax

PACKAGES = ("segjax", "jax", "jaxlib", "libtpu", "numpy", "flax")


def versions() -> dict[str, object]:
    """{"versions": package -> version of those installed, "xla_flags", "libtpu_init_args", "cores", "precision" of products}."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]  # jax adds options at run time
    flags = {"xla_flags": os.environ.get("XLA_FLAGS", ""), "libtpu_init_args": os.environ.get("LIBTPU_INIT_ARGS", "")}
    return {"versions": found, **flags, "cores": cores, "precision": precision}
