"""`segjax bench`: shapes without data, what is refused, a small network compiled for a TPU slice (where libtpu is installed)."""

import importlib.util
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import cli
from segjax.data import pipeline
from segjax.errors import ConfigError, WeightsError
from segjax.runtime import hlo, hlo_text
from segjax.runtime import mesh as meshes
from segjax.verbs import bench_shapes, bench_step, bench_topology, build, config_file, frozen

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install libtpu)")


def load(spec, *overrides):
    return config_file.load(str(CONFIGS / spec), overrides)


def test_shapes_are_those_of_the_data(tiny_config):
    """What is told from the values alone is what the pipeline then gives."""
    stage = build.stage(config_file.load(tiny_config), "fda")
    data = build.training_data(stage)
    real = next(pipeline.batches(data.streams, batch_size=2, steps=1))
    told = bench_shapes.batch(stage, 2)
    assert {key: (value.shape, value.dtype) for key, value in told.items()} == {key: (x.shape, x.dtype) for key, x in real.items()}


def test_shapes_without_any_file():
    """The papers' configs on a machine that has neither their data nor their weights."""
    stage = bench_shapes.stage_of(load("fda.py:gta_cityscapes"), "")
    shapes = bench_shapes.batch(stage, 256)
    assert shapes["source_image"].shape == shapes["target_image"].shape == (256, 512, 1024, 3) and "target_label" not in shapes
    assert bench_shapes.frozen_weights(load("fda.py:gta_cityscapes"), stage) == ()
    config = load("diga.py:gta_cityscapes")
    stage = bench_shapes.stage_of(config, "selftrain")
    shapes = bench_shapes.batch(stage, 6)
    assert shapes["target_label"].shape == (6, 512, 896) and shapes["source_image"].dtype == jnp.uint8
    weights = bench_shapes.frozen_weights(config, stage)
    assert weights["centroids"]["centroids"].shape[0] == 19 and "params" in weights["translator"]


def test_an_absent_encoder_has_the_networks_shapes():
    config = load("uda.py:gta_cityscapes,host=daformer")
    stage = bench_shapes.stage_of(config, "")
    frozen = bench_shapes.frozen_weights(config, stage)["imagenet"]
    assert set(frozen["params"]) == {"backbone"} and bench_shapes.parameters(frozen["params"]) > 80e6
    assert bench_shapes.batch(stage, 2)["target_image"].shape == (2, 512, 512, 3)


def test_an_absent_segmenter_has_the_shapes_of_the_methods():
    config = load("clouds.py:gta,sam=vit_h", "--config.segmenter=none/sam.pth")
    stage = build.stage(config, "joint")
    weights = bench_shapes.frozen_weights(config, stage)["segmenter"]
    assert bench_shapes.parameters(weights) == 641_090_864  # SAM ViT-H with its one buffer
    with pytest.raises(WeightsError, match="segmenter='none/sam.pth': no such file"):
        frozen.files(stage)


def test_frozen_files_tell_their_own_shapes(tmp_path, tiny_config):
    config = config_file.load(tiny_config)
    stage = build.stage(config, "fda")
    with config.unlocked():
        config.stages.fda.frozen = {"teacher": str(tmp_path / "absent.safetensors")}
    with pytest.raises(WeightsError, match="absent.safetensors"):
        bench_shapes.frozen_weights(config, build.stage(config, stage.name))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e:2x2", "--mesh=data=2,model=2"], "--mesh=data=2,model=2: expected data=N,fsdp=M"),
        (["--topology=v9:2x2"], "no figures of the chip 'v9'"),
        (["--topology=v5e:2x2", "--efficiency=2"], "share above 0 and up to 1"),
        (["--topology=v5e:2x2", "--stage=no"], "unknown stage 'no'|needs libtpu"),
        (["--optimization=O1"], "--optimization=O1 is of --topology"),
        (["--coordinator=host0:1234", "--processes=2", "--process-id=1"], "^segjax: bench works in one process: start it on one host"),
    ],
)
def test_mistakes_are_one_line(flags, message, capsys):
    assert cli.main(["bench", f"--config={CONFIGS / 'fda.py'}", *flags]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_task_of_many_is_refused(monkeypatch, capsys):
    """In a pod or a SLURM job whose tasks are to find each other."""
    for name, value in {"SEGJAX_DISTRIBUTED": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "node[1-4]"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["bench", "--workload=fda"]) == 2
    assert "bench works in one process" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_without_libtpu_the_command_is_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", f"--config={CONFIGS / 'fda.py'}", "--topology=v5e:2x2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'pip install "segjax[tpu]"' in error


@libtpu
def test_an_unknown_slice_is_one_line(capsys):
    assert cli.main(["bench", f"--config={CONFIGS / 'fda.py'}", "--topology=v5e:3x3"]) == 2
    assert "expected a slice such as v5e:2x2" in capsys.readouterr().err


@libtpu
def test_a_small_network_compiles_for_four_chips(tiny_config, tmp_path, capsys):
    """data 2 x fsdp 2: fits, moves gradients, and its row says what the table says."""
    out = tmp_path / "rows.jsonl"
    flags = ["--stage=source_only", "--topology=v5e:2x2", "--mesh=data=2,fsdp=2", "--per-device=1", f"--out={out}"]
    assert cli.main(["bench", f"--config={tiny_config}", *flags]) == 0
    row = json.loads(out.read_text())
    assert row["fits"] and row["devices"] == 4 and row["mesh"] == {"data": 2, "fsdp": 2} and row["rows_each"] == 1
    assert row["peak_bytes"] == sum(row[f"{k}_bytes"] for k in ("argument", "temp", "output")) - row["alias_bytes"]
    assert any(each["kind"] == "all-reduce" and each["executions"] > 0 for each in row["collectives"])
    assert row["flops"]["program"] > 0 and row["unknown_loops"] == 0 and row["model"]["step_s"] > 0
    assert row["model"]["inputs"]["flops"] == 197e12 and "libtpu" in row["versions"]
    assert row["compiler_options"] == {"xla_tpu_scoped_vmem_limit_kib": "13312"} and row["libtpu_init_args"] == ""
    assert " with --some=1 |" in bench_topology.summary([row | {"libtpu_init_args": "--some=1"}])
    printed = capsys.readouterr().out
    assert "fits" in printed and "all-reduce" in printed and "weak scaling" in printed
    assert cli.main(["bench", f"--config={tiny_config}", *flags, "--optimization=O0"]) == 0
    hasty = json.loads(out.read_text().splitlines()[1])
    assert (row["optimization"], hasty["optimization"]) == (None, "O0") and "CPU-s at O0" in capsys.readouterr().out
    assert hasty["estimated_cycles"] > row["estimated_cycles"] and hasty["argument_bytes"] == row["argument_bytes"]
    assert jax.config.jax_optimization_level == "UNKNOWN"


@libtpu
def test_what_does_not_fit_is_said(tiny_config, tmp_path, capsys):
    """A million images a chip: the compiler gives up and names the bytes."""
    out = tmp_path / "rows.jsonl"
    flags = ["--stage=source_only", "--topology=v5e:2x2", "--per-device=1000000", f"--out={out}"]
    assert cli.main(["bench", f"--config={tiny_config}", *flags]) == 0
    row = json.loads(out.read_text())
    assert not row["fits"] and row["peak_bytes"] > row["limit_bytes"] > 10e9
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_a_program_that_jax_cannot_print_is_read_as_the_compiler_wrote_it_down(tmp_path):
    def step(a, b):
        return (a @ b).sum()

    compiled = jax.jit(step).lower(*[jnp.ones((16, 16))] * 2).compile(compiler_options={"xla_dump_to": str(tmp_path)})

    class Unprintable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure: async-update instruction should have 1 operands")

    printed, written = (hlo.count(hlo_text.parse(bench_topology._text(each, tmp_path))) for each in (compiled, Unprintable()))
    assert printed == written and written.flops == 2 * 16**3
    with pytest.raises(jax.errors.JaxRuntimeError, match="async-update"):
        bench_topology._text(Unprintable(), tmp_path / "empty")


STEPPING = """
import types

import jax
import jax.numpy as jnp

from segjax.runtime import mesh as meshes
from segjax.typing import Method


def check_stage(config, name): ...
def run_stage(config, name, place, places, on_change): ...


def step_shapes(config, name, mesh):
    rows = config.stages[name].batch_size
    method = Method(None, lambda state, frozen, batch: (state, {"loss": batch["x"].sum()}), None)
    batch = {"x": jax.ShapeDtypeStruct((rows,), jnp.float32, sharding=meshes.batch_sharding(mesh))}
    return types.SimpleNamespace(method=method, state={}, frozen=(), batch=batch)
"""


def test_another_verbs_step_is_taken_from_it(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "bench_fork").mkdir()
    (tmp_path / "bench_fork" / "stepping.py").write_text(STEPPING)
    monkeypatch.syspath_prepend(str(tmp_path))
    config, mesh = config_file.load(tiny_config), meshes.make_mesh(4)
    with config.unlocked():
        config.stages.other = {"verb": "bench_fork.stepping"}
        config.stages.labels = {"verb": "pseudo-label"}
    step = bench_step.of_stage(config, "other", mesh, 3)
    assert step.batch["x"].shape == (12,) and step.about["rows_each"] == 3 and step.about["verb"] == "bench_fork.stepping"
    with pytest.raises(ConfigError, match="no step to compile"):
        bench_step.of_stage(config, "labels", mesh, 1)
    trained = bench_step.of_stage(config, "source_only", mesh, 2)
    assert trained.batch["source_image"].shape[0] == 8 and trained.about["parameters"] > 0


def test_rows_of_a_file_are_shown(tmp_path, capsys):
    rows = CONFIGS.parent / "scripts" / "results" / "topology.jsonl"
    assert cli.main(["bench", f"--show={rows}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(rows.read_text().splitlines()) and "all-reduce" in printed[2]
    for text in ("", "{}\n", "no json\n"):
        (tmp_path / "rows.jsonl").write_text(text)
        assert cli.main(["bench", f"--show={tmp_path / 'rows.jsonl'}"]) == 2
        assert "expected rows that --out wrote" in capsys.readouterr().err


def test_targets_keep_their_proportion_and_meshes_are_read(tiny_config):
    config = config_file.load(tiny_config)
    with config.unlocked():
        config.stages.fda.data.target_batch_size = 1
    assert bench_shapes.batch(build.stage(config, "fda"), 8)["target_image"].shape[0] == 4
    with pytest.raises(ConfigError, match="--mesh"):
        bench_shapes.parse_mesh("data")
    assert bench_shapes.parse_mesh("data=16,fsdp=16") == {"data": 16, "fsdp": 16}
    assert bench_shapes.parameters({"a": np.zeros((3, 4)), "b": jax.ShapeDtypeStruct((5,), jnp.float32)}) == 17
