"""`segjax launch`: what it prints is what its scripts run, fits the config, and is refused where it does not."""

import os
import pathlib
import shlex
import subprocess

import pytest
import yaml

from segjax import cli

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ["--config=configs/quickstart.py", "--workdir=/mnt/segjax/run", "--config.stages.fda.method.betas=(0.1,)"]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def launched(capsys, *flags: str) -> dict[str, list[str]]:
    """Title -> the lines below it."""
    assert cli.main(["launch", *CONFIG, *flags]) == 0
    parts = capsys.readouterr().out.strip().split("\n\n")
    return {part.splitlines()[0].split()[1].strip(","): part.splitlines()[1:] for part in parts}


def test_gpu_hosts(capsys):
    found = launched(capsys, "--hosts=2", "--gpus=4", "--time=4:00:00", "--name=day")
    words = shlex.split(found["SLURM"][0])
    assert words[0] == "sbatch" and {"--nodes=2", "--gpus-per-node=4", "--time=4:00:00"} <= set(words)
    job = words[words.index("scripts/launch_slurm.sh") + 1 :]
    assert job[0] == "run" and set(job[1:]) == set(CONFIG)
    jobset = yaml.safe_load("\n".join(found["Kubernetes"]))
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = spec["template"]["spec"]["containers"][0]
    environment = {each["name"]: each["value"] for each in pod["env"]}
    assert environment["JAX_COORDINATOR_ADDRESS"] == "day-hosts-0-0.day:1234" and environment["JAX_NUM_PROCESSES"] == "2"
    assert environment["EXTRA"] == "cuda"
    assert (spec["completions"], spec["completionMode"], pod["resources"]["limits"]["nvidia.com/gpu"]) == (2, "Indexed", 4)
    assert pod["command"][:2] == ["bash", "scripts/pod.sh"] and set(pod["command"][3:]) == set(CONFIG)


def test_tpu_slices_are_made_by_what_is_printed(capsys, tmp_path):
    """The scripts, run with programs that only note how they are called, do what they print."""
    found = launched(capsys, "--topology=v5e:2x4", "--project=p", "--zone=z", "--cluster=c")
    for name in ("gcloud", "xpk", "git", "tar", "mkdir"):
        fake = tmp_path / name
        describes = '[[ " $* " == *" describe "* ]] && exit 1\n' if name == "gcloud" else ""  # the slice is not there
        fake.write_text(f'#!/usr/bin/env bash\n{describes}printf "%s\\0" {name} "$@" >> {tmp_path}/log; echo >> {tmp_path}/log\n')
        fake.chmod(0o755)
    for title in ("Cloud", "xpk"):
        call, _, *printed = found[title]
        assert "TYPE=v5litepod-8" in call
        (tmp_path / "log").unlink(missing_ok=True)
        subprocess.run(call, shell=True, check=True, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
        done = [line.rstrip("\0").split("\0") for line in (tmp_path / "log").read_text().splitlines()]
        assert done == [shlex.split(line) for line in printed], title
        inside = shlex.split(done[-1][-1].partition("scripts/pod.sh ")[2])
        assert inside[0] == "run" and set(inside[1:]) == set(CONFIG)


def test_what_does_not_fit_is_refused_before_a_queue(capsys):
    for flags, said in {
        (): "where to?",
        ("--hosts=3",): "batch_size=8 does not divide over the 24 devices of 3 hosts of 8: add --config.batch_size=24",
        ("--hosts=2", "--gpus=4", "--config.mesh.data=4"): "mesh data=4 fsdp=1 does not use all 8 devices",
        ("--topology=v4:2x2x2",): "expected KIND:AxB[xC] with KIND one of v5e, v5p, v6e",
        ("--hosts=2", "--gpus=4", "--name=Day_1"): "--name=Day_1: expected at most 40 small letters",
        ("--hosts=1", "--stage=fad"): "did you mean",
    }.items():
        assert cli.main(["launch", *CONFIG, *flags]) == 2
        assert said in (told := capsys.readouterr().err) and told.count("\n") == 1, told


def test_every_script_parses():
    scripts = sorted((ROOT / "scripts").glob("*.sh"))
    told = {script.name: subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False) for script in scripts}
    assert {"launch_slurm.sh", "launch_tpu_vm.sh", "launch_xpk.sh", "pod.sh", "show.sh"} <= told.keys()
    assert [(name, each.stderr) for name, each in told.items() if each.returncode] == []
