"""`segjax analyze`: parameters, operations and bytes by module."""

import json
import pathlib

import jax
import numpy as np
import pytest

from segjax import cli
from segjax.errors import ConfigError
from segjax.verbs import analyze, build, config_file, train, variables

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def test_modules_of_a_small_network(tiny_config, capsys):
    assert cli.main(["analyze", f"--config={tiny_config}", "--stage=source_only", "--json", "--rows=2"]) == 0
    found = {each["module"]: each for each in map(json.loads, capsys.readouterr().out.splitlines())}
    height, width = 32, 64
    stem = 2 * 2 * (height // 2 * width // 2 * 8) * (3 * 3 * 3)
    head = 2 * 2 * (height // 2 * width // 2 * 19) * 8
    assert found["conv"]["forward_flops"] == stem and found["conv"]["parameters"] == 3 * 3 * 3 * 8 + 8
    assert found["classifier"]["forward_flops"] == head and found["classifier"]["backward_flops"] == 2 * head
    assert found["classifier"]["parameters"] == 8 * 19 + 19 and found["norm"]["parameters"] == 16
    stage = build.stage(config_file.load(tiny_config), "source_only")
    numbers = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables.shapes(stage.model)["params"]))
    assert sum(each["parameters"] for each in found.values()) == numbers


def test_the_table_sums_up(tiny_config, capsys):
    assert cli.main(["analyze", f"--config={tiny_config}", "--stage=source_only", "--depth=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "forward GFLOP" in lines[0] and lines[-1].startswith("| total") and "100.0" in lines[-1]


@pytest.mark.parametrize("flags", [["--depth=0"], ["--rows=-1"], ["--stage=no"]])
def test_mistakes(flags, tiny_config, capsys):
    assert cli.main(["analyze", f"--config={tiny_config}", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_scopes_meet_the_names_of_parameters():
    names = {"backbone/layer1/conv": 4, "head/dense": 2}
    assert analyze._line("DeepLabV2/backbone/layer1/conv", names, 2) == "backbone/layer1"
    assert analyze._line("fda/Net/head/dense", names, 1) == "head"
    assert analyze._line("", names, 2) == analyze.ELSEWHERE


def test_profiled_steps_are_read():
    assert train._steps("10:13") == (10, 13) and train._steps("") is None
    for text in ("10", "13:10", "a:b", "5:5"):
        with pytest.raises(ConfigError, match="FIRST:LAST"):
            train._steps(text)
