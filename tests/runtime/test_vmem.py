import types

import jax
import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.runtime import compile as compiling
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


def test_a_kernel_over_the_limit_is_one_line():
    """The text is libtpu 0.0.52's for a Pallas kernel."""
    text = """RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:
Ran out of memory in memory space vmem while allocating on stack for %a.1 = f32[1024,1536]{1,0:T(8,128)} custom-call(%x.1),
metadata={op_name="jit(step)/pallas_call" stack_frame_id=2}. Scoped allocation with size 12.00M and limit 1.00M exceeded scoped vmem
limit by 11.00M. It should not be possible to run out of scoped vmem - """
    told = r"^a kernel \(jit\(step\)/pallas_call\) takes 12.00M of vector memory, the limit is 1.00M: LIBTPU_INIT_ARGS=--xla_tpu_scoped"
    with pytest.raises(SegjaxError, match=told), compiling.out_of_memory_told():
        raise jax.errors.JaxRuntimeError(text)
    assert vmem.too_little("RESOURCE_EXHAUSTED: out of memory in memory space hbm") is None
