"""Devices of a TPU slice that is not here, to compile for: libtpu's compile-only client."""

import importlib.util
import os
from typing import Any

from jax.experimental import topologies

from segjax.errors import ConfigError
from segjax.runtime.chips import CHIPS, Chip

INSTALL = 'pip install "segjax[tpu]"'
KNOWN = "v5e:2x2, v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:2x2, v6e:4x4, v6e:16x16"


def devices(name: str) -> list[Any]:
    """The devices of a slice such as "v5e:16x16" (kind of chip, then chips a side). Nothing can run on them.

    ConfigError: libtpu, which compiles for TPUs without any, is not installed; or it does not know the slice. Sets
    ALLOW_MULTIPLE_LIBTPU_LOAD, without which a second process on this machine would be refused.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"--topology={name} needs libtpu, which compiles for TPUs without having any: {INSTALL}")
    for key, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        os.environ.setdefault(key, value)
    try:
        return list(topologies.get_topology_desc(topology_name=name, platform="tpu").devices)
    except Exception as error:  # libtpu raises whatever it likes for a name that it does not know
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--topology={name}: {text}: expected a slice such as {KNOWN}") from None


def chip(name: str) -> Chip:
    """The chip of a slice's name. ConfigError for one whose peaks are not in the table."""
    kind = name.partition(":")[0]
    if kind not in CHIPS:
        raise ConfigError(f"--topology={name}: no figures of the chip {kind!r}: known: {', '.join(CHIPS)}")
    return CHIPS[kind]
