"""Eight CPU devices, a persistent compile cache, and the folders that tests read."""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib

from segjax.cli import xla_flags
from segjax.runtime.allocator import keep_pages
from segjax.runtime.frames import roomy

os.environ.setdefault("JAX_PLATFORMS", "cpu")
keep_pages()
# Unoptimised code compiles in half the time, and the tests compile more than they compute. Programs cut into parts for many cores, and
# lines of source in them, cost a tenth of it on two.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# jaxlib 0.10's older code generator takes a third of the time; later ones have none, and libtpu ends a process that names it.
if importlib.metadata.version("jaxlib").startswith("0.10.") and importlib.util.find_spec("libtpu") is None:
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = xla_flags(f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}")

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

flags.FLAGS.mark_as_parsed()
jax.config.update("jax_default_matmul_precision", "highest")
_CACHE = os.environ.get("SEGJAX_TEST_CACHE", str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"))
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
gc.freeze()  # traces are many small objects that stay: looking for cycles among them takes a twentieth of the time
gc.set_threshold(200_000, 20, 100)

LONG = ("test_clouds_run", "test_hosts", "test_many_processes", "test_diga_run", "test_personalize", "test_no_recompilation", "test_clouds")
"""Files that take longest with few tests: they go first, or one worker would end on them alone."""

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests" / "goldens"
SHARED = pathlib.Path(os.environ.get("SEGJAX_SHARED", ROOT.parent / "shared"))


def pytest_collection_modifyitems(items):
    place = lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)
    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Every test with room for its frames, as a command has."""
    return roomy(item.config.pluginmanager.getplugin("runner").pytest_runtest_protocol, item, nextitem)


@pytest.fixture(scope="session")
def goldens() -> pathlib.Path:
    """Vectors and tiny checkpoints made by the originals' own code, kept in the repository."""
    return GOLDENS


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """Real photographs, labels and weights; absent on most machines."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set SEGJAX_SHARED to the folder that holds data/)")
    return folder
