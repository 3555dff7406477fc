"""Print the commands that start a config on many hosts: SLURM, Kubernetes, Cloud TPU VM, xpk. Nothing is run.

--hosts and --gpus say what a GPU cluster has, --topology (v5e:4x4) what TPU slice; batch and mesh are checked against the number of
devices. Names that are not given stay in capitals. The commands are those of scripts/launch_*.sh, asked with PRINT=1.
"""

import argparse
import importlib.resources
import json
import os
import pathlib
import re
import shlex
import string
import subprocess

from segjax.errors import ConfigError
from segjax.verbs import build, stages

ROOT = pathlib.Path(__file__).resolve().parents[2]
TPUS = {"v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite"), "v5p": ("v5p", 2, "v2-alpha-tpuv5"), "v6e": ("v6e", 1, "v2-alpha-tpuv6e")}
"""What Cloud TPU calls a slice, what it counts (a v5p has two cores), and the software of its hosts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", required=True, metavar="FILE.py[:ARG]", help="as the hosts see it: a path below the checkout")
    add("--workdir", required=True, metavar="DIR", help="on a file system that all hosts see; below /mnt/segjax but for SLURM")
    add("--stage", default="", metavar="NAME", help="train this stage alone (default: `segjax run`, all of them)")
    add("--hosts", type=int, default=0, metavar="N", help="GPU hosts: prints the SLURM and Kubernetes commands")
    add("--gpus", type=int, default=8, metavar="N", help="of a host (default 8)")
    add("--topology", default="", metavar="KIND:AxB", help="a TPU slice such as v5e:4x4: prints the Cloud TPU VM and xpk commands")
    add("--slices", type=int, default=1, metavar="N", help="of that topology; more than one with xpk alone")
    add("--name", default="segjax", help="of the job")
    for name, text in {"cluster": "GKE cluster", "project": "of Google Cloud", "zone": "of Google Cloud"}.items():
        add(f"--{name}", default=name.upper(), help=text)
    add("--storage", default="STORAGE", help="that is mounted at /mnt/segjax: xpk's name of it, or a volume claim of Kubernetes")
    add("--nfs", default="HOST:/SHARE", help="the same for Cloud TPU VMs")
    add("--image", default="IMAGE", help="container for Kubernetes with this checkout in /segjax")
    for name in ("partition", "account", "time"):
        add(f"--{name}", default="", help="of SLURM")


def run(args: argparse.Namespace) -> int:
    """Prints. ConfigError: nothing to start on, a batch or mesh that does not fit, names that a cluster would refuse."""
    if not args.hosts and not args.topology:
        raise ConfigError("where to? --hosts=N [--gpus=8] for SLURM and Kubernetes, --topology=v5e:4x4 for TPUs")
    for name, least in (("hosts", 0), ("gpus", 0), ("slices", 1)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name}={getattr(args, name)}: expected {least} or more")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", args.name):
        raise ConfigError(f"--name={args.name}: expected at most 40 small letters, digits and -, first a letter")
    words = [f"--config={args.config_file}", *args.config_overrides, f"--workdir={args.workdir}"]
    words = ["train", f"--stage={args.stage}", *words] if args.stage else ["run", *words]
    parts = []
    if args.hosts:
        check_devices(args.config, args.stage, args.hosts * max(args.gpus, 1), f"{args.hosts} hosts of {max(args.gpus, 1)}")
        parts += [("SLURM", shlex.join(slurm(args, words))), ("Kubernetes, a JobSet for `kubectl apply -f -`", jobset(args, words))]
    if args.topology:
        kind, count, software = tpu(args.topology)
        check_devices(args.config, args.stage, count * args.slices, f"{args.slices} x {args.topology}")
        named = {"NAME": args.name, "TYPE": kind, "PROJECT": args.project, "ZONE": args.zone}
        if args.slices == 1:
            parts.append(("Cloud TPU VM", script("launch_tpu_vm.sh", {**named, "VERSION": software, "NFS": args.nfs}, words)))
        more = {"CLUSTER": args.cluster, "STORAGE": args.storage, "SLICES": str(args.slices)}
        parts.append(("xpk", script("launch_xpk.sh", {**named, **more}, words)))
    print("\n\n".join(f"# {title}\n{text}" for title, text in parts))
    return 0


def slurm(args: argparse.Namespace, words: list[str]) -> list[str]:
    """sbatch and its arguments: one task a node, which takes all GPUs of it."""
    given = [f"--{name}={getattr(args, name)}" for name in ("partition", "account", "time") if getattr(args, name)]
    gpus = [f"--gpus-per-node={args.gpus}"] if args.gpus else []
    there = [f"--job-name={args.name}", f"--nodes={args.hosts}", "--ntasks-per-node=1", *gpus, "--exclusive", *given]
    return ["sbatch", *there, _script("launch_slurm.sh"), *words]


def jobset(args: argparse.Namespace, words: list[str]) -> str:
    """The YAML of a JobSet that runs scripts/pod.sh in every pod."""
    text = importlib.resources.files("segjax.verbs").joinpath("templates/jobset.yaml").read_text()
    values = {name: getattr(args, name) for name in ("name", "hosts", "gpus", "image", "storage")}
    command, extra = json.dumps(["bash", _script("pod.sh"), *words]), "cuda" if args.gpus else ""
    return string.Template(text).substitute(values, command=command, extra=extra).rstrip()


def tpu(topology: str) -> tuple[str, int, str]:
    """ "v5e:4x4" -> ("v5litepod-16", 16 chips, software of the hosts). ConfigError for a kind that is not known."""
    kind, _, shape = topology.partition(":")
    if kind not in TPUS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise ConfigError(f"--topology={topology}: expected KIND:AxB[xC] with KIND one of {', '.join(TPUS)}, e.g. v5e:4x4")
    name, cores, software = TPUS[kind]
    chips = 1
    for side in shape.split("x"):
        chips *= int(side)
    return f"{name}-{chips * cores}", chips, software


def script(name: str, variables: dict[str, str], words: list[str]) -> str:
    """The call of a script, and the commands that it would run, told by itself."""
    call = " ".join([*(f"{key}={shlex.quote(value)}" for key, value in variables.items()), "bash", _script(name), shlex.join(words)])
    command = ["bash", str(ROOT / _script(name)), *words]
    told = subprocess.run(command, env={**os.environ, **variables, "PRINT": "1"}, capture_output=True, text=True, check=False)
    if told.returncode:
        raise ConfigError(f"{_script(name)}: {told.stderr.strip()[-300:]}")
    return f"{call}\n# which runs:\n{told.stdout.rstrip()}"


def check_devices(config, stage: str, devices: int, where: str) -> None:
    """ConfigError when a stage's batch or mesh does not fit the number of devices: better here than after hours in a queue."""
    for name in (stage,) if stage else build.stage_names(config):
        stages.verb(config, name)
        spec = build.plain(config.stages[name])
        mesh, batch = spec.get("mesh", {}), spec.get("batch_size", 0)
        fsdp = mesh.get("fsdp", 1)
        data = mesh.get("data", -1) if mesh.get("data", -1) != -1 else max(devices // fsdp, 1)
        if data * fsdp != devices:
            raise ConfigError(
                f"config.stages.{name}.mesh data={mesh.get('data', -1)} fsdp={fsdp} does not use all {devices} devices of {where}: "
                f"add --config.mesh.data=-1, or take fewer"
            )
        if stages.verb(config, name) == stages.TRAIN and batch % devices:
            near = max(batch // devices, 1) * devices
            raise ConfigError(
                f"config.stages.{name}.batch_size={batch} does not divide over the {devices} devices of {where}: "
                f"add --config.batch_size={near}, or take fewer"
            )


def _script(name: str) -> str:
    """scripts/NAME, which must be there: segjax is launched from a checkout."""
    path = pathlib.Path("scripts") / name
    if not (ROOT / path).is_file():
        raise ConfigError(f"{ROOT / path} is not here: launch from a checkout of the repository, not from an installed package")
    return str(path)
