"""`segjax bench` on the devices here: the gate, the rows, the plot, the workloads' plain forms; the torch side where torch is installed."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import cli
from segjax.errors import ConfigError, SegjaxError
from segjax.runtime import mesh as meshes
from segjax.verbs import bench_ceilings, bench_measure, bench_peer, bench_plot, bench_profile, bench_runner, workloads
from segjax.verbs.workloads import forward, training
from segjax.weights import layouts, safetensors_io, sam, walk

CEILINGS = {"matmul_flops": 1e11, "copy_bytes": 1e10, "matmul_side": 8, "matmul_dtype": "float32", "copy_mb": 1.0}
SMALL = {
    "fda": {"height": 32, "width": 48},
    "upsample_ce": {"height": 32, "width": 48, "stride": 4},
    "contrastive": {"pixels": 64, "dims": 8},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bench_runner, "CHUNK_SECONDS", 1e-3)
    monkeypatch.setattr(bench_ceilings, "measure", lambda mesh, dtype: {**CEILINGS, "matmul_dtype": dtype})


@pytest.mark.parametrize("name", SMALL)
def test_a_row_of_each_operation(name):
    """On two devices: the numbers agree with the plain form first, and the row's figures hang together."""
    mesh = meshes.make_mesh(2)
    row = bench_measure.row(name, workloads.build(name, 2, SMALL[name]), mesh, CEILINGS, chunks=3, profile=name == "fda")
    assert row["gate"] and max(row["gate"].values()) < 2e-5
    assert 0 < row["ms"]["p50"] <= row["ms"]["p90"] and row["mesh"] == {"data": 2, "fsdp": 1}
    assert row["rows_a_second"] == pytest.approx(1e3 * row["rows"] / row["ms"]["p50"])
    assert row["rows_a_second_a_device"] == pytest.approx(row["rows_a_second"] / 2)
    assert row["fraction_of_roofline"] == pytest.approx(row["roofline_ms"] / row["ms"]["p50"])
    assert row["flops"]["analytic"] > 0 and row["bytes"]["least"] > 0 and row["memory"]["temporary"] is not None
    assert {"trace_s", "compile_s", "compile_cached_s", "first_step_s"} <= set(row["seconds"])
    assert "not measured" in bench_measure.table([row])
    if name == "fda":
        found = row["profile"]
        assert sum(found["kind"].values()) == pytest.approx(sum(found["direction"].values())) and found["kind"]["product"] > 0
        assert found["longest"][0][0] in bench_profile.table(found)


def test_a_profile_tells_directions_and_kinds():
    """A GPU's trace: kernels of libraries by their own names, XLA's by the instruction's metadata; the host and its waiting left out."""
    program = """
      %loop_add_fusion.2 = f32[4]{0} fusion(%a), kind=kLoop, metadata={op_type="add" op_name="jit(step)/transpose(jvp(Net))/add"}
      ROOT cudnn-conv.3 = (f32[4]{0}) custom-call(%a), metadata={op_name="jit(step)/jvp(Net)/conv_general_dilated" source_line=3}
    """
    named = lambda name, pid, **tid: {
        "ph": "M",
        "name": "thread_name" if tid else "process_name",
        "pid": pid,
        "args": {"name": name},
        **tid,
    }
    ran = lambda name, pid, tid, dur, op="": {"ph": "X", "name": name, "pid": pid, "tid": tid, "dur": dur, "args": {"hlo_op": op}}
    events = [
        named("/device:GPU:0", 1),
        named("/host:CPU", 2),
        named("Stream #13(Compute)", 1, tid=7),
        named("XLA Ops", 1, tid=8),
        ran("sm90_xmma_fprop_implicit_gemm", 1, 7, 3000, "cudnn-conv.3"),
        ran("sm90_xmma_wgrad_implicit_gemm", 1, 7, 1500),
        ran("loop_add_fusion_2", 1, 7, 600, "loop_add_fusion.2"),
        ran("loop_add_fusion.2", 1, 8, 600, "loop_add_fusion.2"),
        ran("PjitFunction", 2, 1, 9000),
    ]
    found = bench_profile.summary(events, bench_profile.origins(program), 3)
    assert found["direction"] == pytest.approx({"forward and the rest": 1.0, "backward": 0.7})
    assert found["kind"] == pytest.approx({"convolution": 1.5, "elementwise": 0.2})
    assert found["longest"][2] == ["loop_add_fusion_2", pytest.approx(0.2), pytest.approx(1 / 3), "jit(step)/transpose(jvp(Net))/add"]
    assert bench_profile.table({"failed": "why"}) == "no profile: why"


FORWARD = {
    "clip_encoder": ({"image_size": 32, "width": 32, "layers": 2, "heads": 2}, "clip_vision_hf", ()),
    "clip_resnet": ({"image_size": 64, "width": 8, "layers": (1, 2, 1), "heads": 2, "embed_dim": 16}, "clip_openai_vision", ()),
    "mit_block": ({"image": 32, "stage": 2, "width": 32}, "mit_nvlabs", ("block2",)),
    "sam_encoder": (
        {"image_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 32, "period": 2, "window": 3},
        "sam_hf",
        ("image_encoder",),
    ),
    "unet": ({"side": 4, "widths": (32,), "heads": 2, "context": 16, "tokens": 5}, "unet_diffusers", ()),
}


@pytest.mark.parametrize("name", FORWARD)
def test_a_peers_weights_are_taken_over(name):
    """Under the public names that the peers use: every parameter comes back as it left."""
    sizes, public, at = FORWARD[name]
    workload = workloads.build(name, 1, sizes)
    carry = workload.start()
    flat = safetensors_io.flatten(jax.tree.map(np.asarray, forward._below(carry, at)))
    layout = sam.BOTH if public == "sam_hf" else layouts.known()[public].layout(flat)
    weights = walk.to_source(flat, layout)
    taken = workload.adopt(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), carry), weights)
    jax.tree.map(np.testing.assert_array_equal, taken, carry)


def test_a_block_forward_and_backward():
    """Against the program as the compiler's optimisations left it alone."""
    workload = workloads.build("mit_block", 1, FORWARD["mit_block"][0])
    gate = bench_runner.Runner(workload, meshes.make_mesh(1), again=False).gate()
    assert set(gate) == {"dx", "norm"} and max(gate.values()) < 1e-4


def test_a_dead_peer_costs_its_half_of_the_row():
    """Quick: the peer's answer was to be the check, so the plain form is asked after all."""
    workload, mesh = workloads.build("contrastive", 1, SMALL["contrastive"]), meshes.make_mesh(1)
    row = bench_measure.row("contrastive", workload, mesh, CEILINGS, chunks=2, against="torch", python="/bin/false", quick=True)
    assert row["against"] == {"peer": "torch", "none": "the torch side ended with exit code 1: its own message stands above"}
    assert row["gate"] and "compile_cached_s" not in row["seconds"] and "not measured" in bench_measure.table([row])


def test_wrong_numbers_are_not_timed():
    workload = workloads.build("upsample_ce", 1, SMALL["upsample_ce"])
    wrong = {"value": jnp.zeros(()), "gradient": jnp.zeros((2, 8, 12, 19))}
    broken = workloads.Workload(**{**vars(workload), "reference": lambda carry, inputs: wrong})
    with pytest.raises(SegjaxError, match="the numbers differ: .* nothing was timed"):
        bench_runner.Runner(broken, meshes.make_mesh(1)).gate()
    with pytest.raises(SegjaxError, match="loss is nan"):
        bench_runner.check({"loss": np.float32("nan")}, {"loss": np.float32(1)}, 1.0, "its plain form")


def test_a_configs_stage_is_measured(tiny_config, tmp_path, capsys):
    """Its row, its share of the roofline in the plot; images and weights are drawn."""
    out, plot = tmp_path / "rows.jsonl", tmp_path / "roofline.svg"
    flags = ["--stage=source_only", "--mesh=data=2", "--per-device=1", "--chunks=2", f"--out={out}", f"--plot={plot}"]
    assert cli.main(["bench", f"--config={tiny_config}", *flags]) == 0
    row = json.loads(out.read_text())
    assert row["workload"] == "source_only" and row["rows"] == 2 and row["config"] == tiny_config and "jax" in row["versions"]
    assert plot.read_text().startswith("<svg") and "source_only" in plot.read_text()
    assert "source_only" in capsys.readouterr().out


def test_a_supervised_step_agrees_with_the_plain_one(tiny_config):
    """What enet_train and deeplab_r101_train are made of, over a network of one convolution: loss and norm of the gradient."""
    import verbs_tiny_net  # tiny_config has put its folder on the path

    sizes = {"batch": 1, "height": 32, "width": 48, "dtype": "float32", "peer": ""}
    made = training.supervised(verbs_tiny_net.Tiny(19), None, {"name": "sgd", "lr": 0.1}, devices=2, **sizes)
    runner = bench_runner.Runner(made, meshes.make_mesh(2))
    assert set(runner.gate()) == {"loss/ce", "gradient_norm"}
    before = float(jnp.abs(runner.carry.params["conv"]["kernel"]).sum())
    runner.steps(2)
    assert float(jnp.abs(runner.carry.params["conv"]["kernel"]).sum()) != before and int(runner.carry.step) == 2


def test_names_and_sizes():
    steps = {"fda", "upsample_ce", "contrastive", "enet_train", "deeplab_r101_train", "diga_selftrain"}
    assert set(workloads.names()) == steps | set(FORWARD) | {"mit_gradients"}
    assert workloads.read_sizes(["height=512", "dtype=bfloat16", "betas=(1, 2)"]) == {"height": 512, "dtype": "bfloat16", "betas": (1, 2)}
    for call, message in (
        (lambda: workloads.build("fdaa", 1, {}), "did you mean 'fda'"),
        (lambda: workloads.build("fda", 1, {"hight": 3}), "did you mean 'height'"),
        (lambda: workloads.read_sizes(["height"]), "KEY=VALUE"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    assert workloads.build("segjax.verbs.workloads.fda:make", 1, {"batch": 3}).rows == 3
    label = training.draw_batch({"source_label": jax.ShapeDtypeStruct((2, 40, 50), jnp.uint8)}, 4)(np.random.default_rng(0))["source_label"]
    assert label.shape == (2, 40, 50) and set(np.unique(label)) <= {0, 1, 2, 3, 255} and 255 in label


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--workload=fda", "--config=configs/fda.py"],
        ["--workload=fda", "--topology=v5e:2x2"],
        ["--workload=fda,enet_train", "--set=a=1"],
    ],
)
def test_flags_that_do_not_go_together(flags, capsys):
    assert cli.main(["bench", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_installed_segjax_says_where_the_peers_are(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_peer, "PEERS", tmp_path)
    with pytest.raises(ConfigError, match="works from a checkout"):
        bench_peer.available()


def test_the_interval_of_a_ratio():
    rng = np.random.default_rng(1)
    ours = list(1 + 0.01 * rng.random(20))
    ratio, low, high = bench_peer.ratio(ours, [3 * each for each in ours])
    assert low <= ratio <= high and ratio == pytest.approx(3, rel=0.01) and high - low < 0.1
    assert bench_peer.ratio([1.0, 9.0], [2.0, 2.0])[1:] != (0.4, 0.4)


def test_the_machines_ceilings(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(bench_ceilings, "REPEATS", 1)
    found = bench_ceilings.measure(meshes.make_mesh(1), "float32")
    assert found["matmul_flops"] > 1e8 and found["copy_bytes"] > 1e7 and found["matmul_dtype"] == "float32"


def test_the_plot_has_a_point_a_row(tmp_path):
    rows = [
        {"workload": f"w{n}", "device": "cpu", "mesh": {"data": 1}, "ceilings": CEILINGS, "ms": {"p50": 10.0}}
        | {"flops": {"analytic": 10.0 ** (6 + n)}, "bytes": {"least": 1e6}}
        for n in range(3)
    ]
    bench_plot.write(tmp_path / "a" / "roof.svg", rows)
    text = (tmp_path / "a" / "roof.svg").read_text()
    assert text.count("<circle") == 3 and text.count("<polyline") == 1 and "w2" in text


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("name", SMALL)
def test_the_torch_side_gives_the_same(name):
    row = bench_measure.row(name, workloads.build(name, 1, SMALL[name]), meshes.make_mesh(1), CEILINGS, chunks=3, against="torch")
    against = row["against"]
    assert max(against["gate"].values()) < 1e-4 and against["ratio"]["low"] <= against["ratio"]["times"] <= against["ratio"]["high"]
    assert against["variant"] in against["tried_ms"] and "torch" in against
