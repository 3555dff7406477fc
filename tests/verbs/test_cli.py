"""The command line: verbs found lazily, flags and config keys checked, one clear line and the right exit code for every mistake."""

import io
import os
import pathlib
import subprocess
import sys
import textwrap
import time

import pytest

from segjax import cli, errors
from segjax.verbs import config_file

CONFIG = """
    import shared
    from ml_collections import ConfigDict


    def get_config(arg="small"):
        if arg not in ("small", "large"):
            raise ValueError(f"unknown variant {arg!r}: small or large")
        config = ConfigDict({"steps": 5, "lr": 0.1, "crop": (4, 8), "flip": True, "name": shared.NAME + arg})
        config.stages = {"first": {}, "second": {}}
        for stage in config.stages.values():
            stage.steps = config.get_oneway_ref("steps")
        return config
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "shared.py").write_text(f"NAME = {tmp_path.name!r}\n")
    path = tmp_path / "some.py"
    path.write_text(textwrap.dedent(CONFIG))
    return path


@pytest.mark.parametrize(
    ("jaxlib", "given", "expected"),
    [
        ("0.10.2", "--a=1", "--a=1"),
        ("0.11.0", "", "--xla_cpu_experimental_ynn_fusion_type="),
        ("0.12.0.1", "--a=1", "--a=1 --xla_cpu_experimental_ynn_fusion_type="),
        ("1.0", "--xla_cpu_experimental_ynn_fusion_type=DOT", "--xla_cpu_experimental_ynn_fusion_type=DOT"),
    ],
)
def test_a_cpu_s_faulty_bfloat16_fusions_are_off(monkeypatch, jaxlib, given, expected):
    monkeypatch.setattr("importlib.metadata.version", lambda package: {"jaxlib": jaxlib}[package])
    assert cli.xla_flags(given) == expected


def test_help_lists_verbs_without_jax():
    code = (
        "import sys, segjax.cli as c; r = c.main(['--help']); assert not {'jax', 'numpy', 'ml_collections'} & set(sys.modules); sys.exit(r)"
    )
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "config" in result.stdout and "Exit codes" in result.stdout
    assert time.monotonic() - start < 10  # under 1 s on an idle machine


def test_every_verb_has_one_line_of_help():
    known = cli.verbs()
    assert {"train", "run", "evaluate", "predict", "config", "checkpoint"} <= set(known)
    assert all(known.values())
    assert not {"build", "config-file"} & set(known)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], ["unknown verb 'trian'", "did you mean 'train'"]),
        (["config", "show"], ["--config"]),
        (["config", "show", "--config={file}", "--kay=x"], ["--kay", "did you mean --key"]),
        (["config", "show", "--config={file}", "--config.stepz=1"], ["--config.stepz", "did you mean 'steps'"]),
        (["config", "show", "--config={file}", "--config.stages.frist.steps=1"], ["'frist'", "did you mean 'first'"]),
        (["config", "show", "--config={file}", "--config.steps.x=1"], ["config.steps", "it is a value"]),
        (["config", "show", "--config={file}", "--config.stages=1"], ["is a group", "first, second"]),
        (["config", "show", "--config={file}", "--config.steps=many"], ["--config.steps=many"]),
        (["config", "show", "--config={file}", "--config.flip=maybe"], ["true or false"]),
        (["config", "show", "--config={file}:huge"], ["unknown variant 'huge'"]),
        (["config", "show", "--config={file}x"], ["there is no file"]),
        (["config", "show", f"--config={pathlib.Path(__file__).parents[2] / 'LICENSE'}"], ["LICENSE is no Python file"]),
        (["config", "show", "--config={file}", "--key=stages.third"], ["'third'", "first, second"]),
        (["train", "--config={file}", "--stage=first"], ["--workdir"]),
        (["checkpoint", "list", "--workdir=x", "--config.steps=1"], ["no --config=FILE.py"]),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(argv, words, file, capsys):
    assert cli.main([part.replace("{file}", str(file)) for part in argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("segjax: ") and captured.err.count("\n") == 1
    assert all(word in captured.err for word in words), captured.err


def test_overrides_reach_references_and_types(file):
    config = config_file.load(
        f"{file}:large", ["--config.steps=7", "--config.stages.second.steps=2", "--config.crop=(16,32)", "--noconfig.flip"]
    )
    assert (config.steps, config.stages.first.steps, config.stages.second.steps) == (7, 7, 2)
    assert config.crop == (16, 32) and config.flip is False and config.name.endswith("large")
    with pytest.raises(AttributeError):
        config.new_key = 1


def test_two_folders_keep_their_own_shared_file(file, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "shared.py").write_text("NAME = 'other'\n")
    (other / "some.py").write_text(file.read_text())
    assert config_file.load(str(file)).name == file.parent.name + "small"
    assert config_file.load(str(other / "some.py")).name == "othersmall"


def test_config_show_accepts_values_after_a_space(file, capsys):
    assert cli.main(["config", "show", "--config", str(file), "--config.steps", "9", "--key", "stages.first"]) == 0
    assert '"steps": 9' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SegjaxError("x"), 1),
        (errors.ConfigError("x"), 2),
        (errors.DataError("x"), 3),
        (errors.WeightsError("x"), 4),
        (errors.Preempted("x"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code):
    def fail(argv):
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["train"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_closed_pipe_is_quiet(file):
    command = [sys.executable, "-m", "segjax", "config", "show", f"--config={file}"]
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert result.returncode == cli.BROKEN_PIPE and result.stderr == b""


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    def fail(argv):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_dispatch", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


def test_version(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["--version"]) == 0 and out.getvalue().startswith("segjax ")
