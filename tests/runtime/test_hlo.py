"""The counts over an optimized program: hand-made texts with known loops, and programs that XLA compiles here."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segjax.runtime import chips, hlo, hlo_costs, hlo_text
from segjax.runtime import mesh as meshes
from segjax.runtime.compile import count_flops

PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %i = s32[] get-tuple-element(%p), index=0
  %w = f32[16,16]{1,0:T(8,128)S(1)} constant({...})
  %dot.1 = f32[8,16]{1,0:T(8,128)} dot(%x, %w), lhs_contracting_dims={1}, backend_config={"estimated_cycles":"100"}
  %all-reduce.1 = (f32[8,16]{1,0}, f32[8,16]{1,0}) all-reduce(%dot.1, %dot.1), replica_groups={{0,1},{2,3}}, to_apply=%add
  %y = f32[8,16] get-tuple-element(%all-reduce.1), index=0
  ROOT %t = (s32[], f32[8,16]) tuple(%i, %y)
}

%before (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[], f32[8,16]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%outer (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]) parameter(0)
  %two = s32[] constant(2)
  %start = s32[]{:T(128)} copy(%two)
  %x = f32[8,16] get-tuple-element(%p), index=1
  %t = (s32[], /*index=1*/f32[8,16]{1,0:T(8,128)}) tuple(%start, %x)
  ROOT %w = (s32[], f32[8,16]) while(%t), condition=%before, body=%inner
}

%always (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[], f32[8,16]) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%nothing (q: f32[8,16]) -> f32[8,16] {
  ROOT %q = f32[8,16] parameter(0)
}

%dear (q: f32[8,16]) -> f32[8,16] {
  %q = f32[8,16] parameter(0)
  ROOT %g = f32[8,16] collective-permute(%q), source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (x: f32[8,16], s: bf16[12,64], k: bf16[3,3,4,8], im: bf16[2,16,16,4]) -> f32[8,16] {
  %x = f32[8,16] parameter(0)
  %s = bf16[12,64] parameter(1)
  %zero = s32[] constant(0)
  %t = (s32[], f32[8,16]) tuple(%zero, %x)
  %w = (s32[], f32[8,16]) while(%t), condition=%always, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  %k = bf16[3,3,4,8] parameter(2)
  %im = bf16[2,16,16,4] parameter(3)
  %conv = bf16[2,16,16,8] convolution(%im, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
  %ag-start = (bf16[12,64], bf16[48,64]) all-gather-start(%s), replica_groups=[2,2]<=[4], dimensions={0}
  %ag-done = bf16[48,64] all-gather-done(%ag-start)
  %rs = bf16[3,64] reduce-scatter(%s), replica_groups=mesh['a'=2,'b'=2] {'a','b'}, to_apply=%add
  %alone = bf16[12,64] all-reduce(%s), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  %y = f32[8,16] get-tuple-element(%w), index=1
  %which = pred[] constant(true)
  ROOT %r = f32[8,16] conditional(%which, %y, %y), true_computation=%nothing, false_computation=%dear
}
"""


def test_loops_within_loops_count_by_their_trips():
    total = hlo.count(hlo_text.parse(PROGRAM))
    runs = 3 * 5  # noted by the compiler, times 7 - 2 from condition and start
    assert total.executions == {
        ("all-reduce", 2): runs,
        ("all-gather", 2): 1,
        ("reduce-scatter", 4): 1,
        ("collective-permute", 2): 1,
    }
    assert total.moved["all-reduce", 2] == runs * 2 * 8 * 16 * 4 and total.moved["all-gather", 2] == 2 * 12 * 64 * 2
    assert total.moved["reduce-scatter", 4] == 12 * 64 * 2 and total.moved["collective-permute", 2] == 8 * 16 * 4
    inside = 3 * 16 - 2  # taps of a row that meet a pixel
    assert total.flops == runs * 2 * 8 * 16 * 16 + 2 * (2 * 8 * 4) * inside**2
    assert total.cycles == runs * 100 and total.unknown_loops == 0


def test_a_loop_without_a_bound_counts_once_and_is_told():
    total = hlo.count(hlo_text.parse(PROGRAM.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")))
    assert total.unknown_loops == 1 and total.executions["all-reduce", 2] == 5


def test_traffic_counts_slices_and_main_memory_alone():
    text = """HloModule m, num_partitions=1

%slicing (stack: f32[10,64], i: s32[]) -> f32[64] {
  %stack = f32[10,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %one = f32[1,64] dynamic-slice(%stack, %i, %z), dynamic_slice_sizes={1,64}
  ROOT %flat = f32[64] reshape(%one)
}

%outer (stack: f32[10,64], j: s32[]) -> f32[64] {
  %stack = f32[10,64]{1,0} parameter(0)
  %j = s32[] parameter(1)
  ROOT %within = f32[64] fusion(%stack, %j), kind=kLoop, calls=%slicing
}

%updating (stack: f32[10,64], new: f32[1,64], i: s32[]) -> f32[10,64] {
  %stack = f32[10,64] parameter(0)
  %new = f32[1,64] parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %u = f32[10,64] dynamic-update-slice(%stack, %new, %i, %z)
}

ENTRY %main (stack: f32[10,64], new: f32[1,64], i: s32[]) -> f32[10,64] {
  %stack = f32[10,64] parameter(0)
  %new = f32[1,64] parameter(1)
  %i = s32[]{:S(2)} parameter(2)
  %a = f32[64]{0:T(128)S(1)} fusion(%stack, %i), kind=kLoop, calls=%slicing
  %n = f32[64]{0:T(128)S(1)} fusion(%stack, %i), kind=kLoop, calls=%outer
  %b = f32[64] negate(%a)
  ROOT %c = f32[10,64] fusion(%stack, %new, %i), kind=kLoop, calls=%updating
}
"""
    slice_bytes = 64 * 4
    # the slice is read twice, by a fusion and by one within another, and its copies stay in fast memory; the negation is written; the new
    # row is read and written
    assert hlo.count(hlo_text.parse(text)).bytes == 2 * slice_bytes + slice_bytes + 2 * slice_bytes


def test_operations_of_a_depthwise_kernels_gradient():
    """Channels as groups of the batch: each output meets the window and the inputs of its own group."""
    text = """HloModule m

ENTRY %main (x: f32[5,10,10,2], dy: f32[8,8,2,5]) -> f32[1,3,3,5] {
  %x = f32[5,10,10,2] parameter(0)
  %dy = f32[8,8,2,5] parameter(1)
  ROOT %dk = f32[1,3,3,5] convolution(%x, %dy), window={size=8x8}, dim_labels=b01f_01io->b01f, batch_group_count=5
}
"""
    assert hlo.count(hlo_text.parse(text)).flops == 2 * (3 * 3 * 5) * (8 * 8 * 2)


def test_operations_of_a_batched_product_as_a_convolution():
    """How TPUs' compilers write it: the batch is a dimension of the picture, and all taps but one fall on padding or holes."""
    text = """HloModule m

ENTRY %main (x: f32[16,5,7], y: f32[16,7,3]) -> f32[16,5,3] {
  %x = f32[16,5,7] parameter(0)
  %y = f32[16,7,3] parameter(1)
  ROOT %z = f32[16,5,3] convolution(%x, %y), window={size=16 stride=15 pad=0_0 lhs_dilate=16}, dim_labels=0bf_0io->0bf
}
"""
    assert hlo.count(hlo_text.parse(text)).flops == 16 * (2 * 5 * 7 * 3)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", 2),
        ("replica_groups={}, to_apply=%add", 8),
        ("channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={2}", 4),
        ("replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, dimensions={2}", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1':(1)2}, dimensions={2}", 4),
        ("replica_groups=mesh['axis_0'=8], to_apply=%add, dimensions={2}", 8),
    ],
)
def test_groups_in_every_spelling(groups, size):
    assert hlo_costs.group_size(groups, 8) == size


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo_text.parse("HloModule m\n")


def test_a_compiled_scan_over_sharded_weights():
    """Each trip gathers one kernel for use and reduces its gradient; the program's work is the formulas' share of each device."""
    mesh = meshes.make_mesh(2, 4)
    place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    w = jax.ShapeDtypeStruct((6, 32, 32), jnp.float32, sharding=place(None, None, "fsdp"))
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=place(("data", "fsdp")))

    def loss(w, x):
        whole = lambda kernel: jax.lax.with_sharding_constraint(kernel, place())
        return jnp.square(jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ whole(kernel)), None), x, w)[0]).sum()

    gradient = jax.grad(loss)
    compiled = jax.jit(gradient, out_shardings=place(None, None, "fsdp")).lower(w, x).compile()
    total = hlo.count(hlo_text.parse(compiled.as_text()))
    assert total.flops == count_flops(jax.make_jaxpr(gradient)(w, x).jaxpr) / 8
    assert total.executions["all-gather", 4] >= 6 and total.executions["all-gather", 4] % 6 == 0
    reduced = {key: runs for key, runs in total.executions.items() if key[0] in ("all-reduce", "reduce-scatter")}
    assert reduced and all(runs % 6 == 0 for runs in reduced.values())
    assert total.moved["all-gather", 4] == total.executions["all-gather", 4] * 32 * 32 * 4
    assert total.unknown_loops == 0


def test_step_time_of_a_known_case():
    """44 M float32 gradients among 256 v5e chips: 1.76 ms, as a ring in one direction has it."""
    total = hlo.Totals(flops=197e9, bytes=819e6)
    total.moved["all-reduce", 256] = 176e6
    time = chips.step_time(total, chips.CHIPS["v5e"], efficiency=0.5)
    assert time.compute == pytest.approx(2e-3) and time.memory == pytest.approx(1e-3)
    assert time.collectives == pytest.approx(2 * 255 / 256 * 176e6 / 200e9)
    assert time.apart == pytest.approx(2e-3 + time.collectives) and time.overlapped == pytest.approx(2e-3)
    assert time.scaling == pytest.approx(2e-3 / time.apart)
