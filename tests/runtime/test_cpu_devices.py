"""A CPU becomes two devices where nothing else has been said, and stays what it is otherwise."""

import os
import subprocess
import sys

import jax
import pytest

from segjax.runtime import cpu_devices

PROGRAM = "import jax; from segjax.runtime import cpu_devices; cpu_devices.share_cores(); print(jax.device_count())"


@pytest.mark.parametrize(("said", "devices"), [({}, 2), ({"JAX_NUM_CPU_DEVICES": "1"}, 1)])
def test_two_unless_told(said, devices):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu", **said}
    found = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert int(found.stdout) == (devices if (os.cpu_count() or 1) > 1 else 1)


def test_flags_count_and_a_late_call_changes_nothing(monkeypatch):
    before = jax.device_count()
    cpu_devices.share_cores()  # XLA_FLAGS of the tests say how many
    monkeypatch.delenv("XLA_FLAGS")
    cpu_devices.share_cores()  # jax has begun
    assert jax.device_count() == before and jax.config.jax_num_cpu_devices != 2
