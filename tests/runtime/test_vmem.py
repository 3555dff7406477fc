import types

import numpy as np

from segjax.runtime import mesh as meshes
from segjax.runtime import vmem


def test_only_tpus_have_windows_and_the_environment_wins(monkeypatch):
    of = lambda platform: types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    assert vmem.options(of("tpu")) == {"xla_tpu_scoped_vmem_limit_kib": "13312"}
    assert vmem.options(of("gpu")) == {} == vmem.options(meshes.make_mesh())
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_some_flag=1")
    assert vmem.options(of("tpu"))
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_some_flag=1 --xla_tpu_scoped_vmem_limit_kib=16384")
    assert vmem.options(of("tpu")) == {}
