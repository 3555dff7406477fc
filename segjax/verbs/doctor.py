"""What this machine has: versions, devices, memory, compile cache, one tiny compiled step, and the command for what is missing.

Exit 0 when segjax can run here, 1 when something that it needs is missing or the step gives a wrong number. It installs nothing.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

OK, NOTE, BAD = "ok", "note", "MISSING"
OPTIONAL = {"torchfile": "reads Torch7 files in `convert`", "huggingface_hub": "downloads weights", "wandb": "logs to Weights & Biases"}
"""Optional packages and what each is for."""
REINSTALL = "update the driver, or install another jax: the CUDA and libtpu versions that go together stand in jax's install guide"
NVIDIA, TPU = pathlib.Path("/proc/driver/nvidia/version"), (pathlib.Path("/dev/accel0"), pathlib.Path("/dev/vfio/0"))
"""What the kernel shows of an accelerator, whether or not jax can use it."""


class Finding(NamedTuple):
    """One line of the answer. `fix` is a command or a sentence, empty when there is nothing to do."""

    level: str
    what: str
    value: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `segjax doctor`: none."""


def run(args: argparse.Namespace) -> int:
    """Prints one line a finding as it is found; 1 when any is BAD."""
    bad = 0
    for finding in examine():
        bad += finding.level == BAD
        fix = f"  ->  {finding.fix}" if finding.fix else ""
        print(f"{finding.level:<8}{finding.what:<18}{finding.value}{fix}", flush=True)
    print("segjax can run here" if not bad else f"{bad} thing{'s' * (bad > 1)} to mend: the lines marked {BAD} say how")
    return 1 if bad else 0


def examine() -> Iterator[Finding]:
    """Every check in order. jax is imported only once its packages are known to be there."""
    yield _python()
    missing = False
    for finding in packages(importlib.metadata.requires("segjax") or []):
        missing |= finding.level == BAD
        yield finding
    if missing:
        return
    try:
        import jax

        from segjax.runtime import compile as compiler

        devices = jax.devices()
    except (RuntimeError, ImportError) as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        yield Finding(
            BAD, "devices", " ".join(str(error).split())[:200], f"unset JAX_PLATFORMS (now {wanted!r})" if wanted else _install("jax")
        )
        return
    yield from device_lines(devices)
    yield accelerator(devices[0].platform, nvidia=NVIDIA.exists(), tpu=any(path.exists() for path in TPU))
    yield _host_memory()
    yield compile_cache(compiler.enable_cache(), os.environ.get("SEGJAX_CACHE"))
    yield tiny_step(devices)


def _python() -> Finding:
    return Finding(OK, "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores")


def packages(requirements: list[str]) -> Iterator[Finding]:
    """What segjax requires (one line of versions, or one a problem), then the optional packages that are absent."""
    good = []
    for text in requirements:
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?(?:>=([\d.]+))?", text)
        assert match, text  # a requirement begins with a name
        name, least = match.groups()
        if "extra ==" in text:
            continue
        found = _version(name)
        if found is None:
            yield Finding(BAD, name, "not installed", _install(text))
        elif least and _numbers(found) < _numbers(least):
            yield Finding(BAD, name, f"{found}, needs {least} or newer", _install(text))
        else:
            good.append(f"{name} {found}")
    yield Finding(OK, "packages", f"segjax {_version('segjax')}, " + ", ".join(good))
    for name, use in OPTIONAL.items():
        if _version(name) is None:
            yield Finding(NOTE, name, f"not installed ({use})", _install(name))


def extra(name: str) -> str:
    """What an extra of segjax installs, e.g. "cuda" -> "jax[cuda13]"."""
    lines = importlib.metadata.requires("segjax") or []
    return next(line.split(";")[0].strip() for line in lines if f'extra == "{name}"' in line)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _install(requirement: str) -> str:
    """The command for this interpreter; an environment that uv made has no pip."""
    python = pathlib.Path(sys.executable)
    tool = f"{python} -m pip install" if importlib.util.find_spec("pip") else f"uv pip install --python {python}"
    return f'{tool} "{requirement}"'


def device_lines(devices: list[Any]) -> Iterator[Finding]:
    """One line a kind of device, with its memory where the platform tells."""
    kinds: dict[tuple[str, str], list[Any]] = {}
    for device in devices:
        kinds.setdefault((device.platform, device.device_kind), []).append(device)
    for (name, kind), group in kinds.items():
        stats = group[0].memory_stats() or {}
        limit = f", {stats['bytes_limit'] / 2**30:.1f} GiB each" if "bytes_limit" in stats else ""
        yield Finding(OK, "devices", f"{len(group)} x {name}" + (f" ({kind})" if kind != name else "") + limit)


def accelerator(platform_name: str, *, nvidia: bool, tpu: bool) -> Finding:
    """Whether the accelerator that the kernel shows is the one that jax uses."""
    if nvidia and platform_name == "cpu":
        return Finding(BAD, "accelerator", "an NVIDIA GPU is here but jax uses the CPU", _install(extra("cuda")))
    if tpu and platform_name == "cpu":
        return Finding(BAD, "accelerator", "a TPU is here but jax uses the CPU", _install(extra("tpu")))
    if platform_name == "cpu":
        return Finding(NOTE, "accelerator", "none: small networks and pictures run well on the CPU, the papers' settings want a GPU or TPU")
    return Finding(OK, "accelerator", f"in use ({platform_name})")


def _host_memory() -> Finding:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    free = shutil.disk_usage(".").free / 2**30
    low = "free some space: checkpoints and reports need about 1 GiB" if free < 1 else ""
    return Finding(NOTE if low else OK, "host", f"{pages:.1f} GiB memory, {free:.1f} GiB free on the disk of this folder", low)


def compile_cache(folder: pathlib.Path | None, wanted: str | None) -> Finding:
    """Whether compiled programs outlive the process. folder: what is in use, None when there is none; wanted: SEGJAX_CACHE."""
    if folder is None and wanted == "":
        return Finding(NOTE, "compile cache", "turned off by an empty SEGJAX_CACHE: every start compiles anew", "unset SEGJAX_CACHE")
    if folder is None:
        return Finding(
            NOTE, "compile cache", "no folder can be written: every start compiles anew", "set SEGJAX_CACHE to a folder that you may write"
        )
    return Finding(OK, "compile cache", f"{folder}, {sum(1 for _ in folder.glob('*-cache'))} compiled programs")


def tiny_step(devices: list[Any]) -> Finding:
    """One gradient step of a 3x3 convolution, compiled and sharded over every device, against numpy."""
    try:
        error, compile_seconds, run_seconds = _convolution_step(devices)
    except Exception as problem:  # a broken driver raises anything; this verb exists to report it
        return Finding(BAD, "compiled step", " ".join(f"{type(problem).__name__}: {problem}".split())[:300], REINSTALL)
    if not error < 1e-2:
        return Finding(BAD, "compiled step", f"wrong result, off by {error:.2g}: the driver and jaxlib do not match", REINSTALL)
    where = f"{len(devices)} device{'s' * (len(devices) > 1)}"
    text = f"right to {error:.0e} on {where}, compiled in {compile_seconds:.2f} s, runs in {1e3 * run_seconds:.2f} ms"
    return Finding(OK, "compiled step", text)


def _convolution_step(devices: list[Any]) -> tuple[float, float, float]:
    """(largest relative error, seconds to compile, seconds to run)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    image, kernel = rng.normal(size=(2 * len(devices), 16, 16, 3)).astype(np.float32), rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    split, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))

    def loss(kernel, image):
        out = jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest")
        return jnp.mean(jnp.square(out))

    start = time.perf_counter()
    step = jax.jit(jax.grad(loss), in_shardings=(whole, split), out_shardings=whole).lower(kernel, image).compile()
    compiled = time.perf_counter()
    arguments = jax.device_put(kernel, whole), jax.device_put(image, split)
    jax.block_until_ready(step(*arguments))
    begun = time.perf_counter()
    gradient = np.asarray(step(*arguments))
    seconds = time.perf_counter() - begun
    patches = (
        np.lib.stride_tricks.sliding_window_view(image.astype(np.float64), (3, 3), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3).reshape(-1, 27)
    )
    flat = kernel.reshape(27, 4).astype(np.float64)
    expected = (2 * patches.T @ (patches @ flat) / (len(patches) * 4)).reshape(kernel.shape)
    return float(np.abs(gradient - expected).max() / np.abs(expected).max()), compiled - start, seconds
