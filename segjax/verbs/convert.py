"""Public checkpoint (torch pickle, safetensors, Torch7) to segjax weights, or segjax weights back to a public layout.

segjax convert --input=GTA2Cityscapes_multi.pth --output=weights.safetensors
segjax convert --input=weights.safetensors --to=deeplabv2_resnet --output=for_torch.safetensors
segjax convert --input=nvidia/segformer-b0-finetuned-cityscapes-1024-1024@main --output=b0.safetensors      a model of the hub, when online
segjax convert --input=b0.safetensors --to=segformer_hf --output=DIR/                  weights and config.json, as transformers reads them

Strict both ways: every source key is used, every parameter is set, or one error lists the rest. Pickles are read by a restricted
reader that executes nothing. Beside the output lands OUTPUT.source.json (DIR/source.json): sha256 of the files, layout, network, counts,
and the commit of a model of the hub.
"""

import argparse
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import ConfigError
from segjax.verbs import networks
from segjax.weights import layouts, safetensors_io


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    names = ", ".join(layouts.known())
    places = "checkpoint file, index of shards, folder of a hub, or its name there: org/name[@revision][:file]"
    parser.add_argument("--input", required=True, metavar="PATH", help=places)
    parser.add_argument("--output", required=True, metavar="FILE.safetensors", help="what to write; DIR/ with --to: a folder of a hub")
    parser.add_argument("--layout", default="auto", help=f"of the input: auto, {names}, or package.module:NAME of a Public layout")
    parser.add_argument("--to", default="segjax", help="segjax, or the layout to go back to")
    branches = "model (the student), ema_model (the teacher), imnet_model, mic.teacher.ema_model"
    parser.add_argument("--branch", default="model", help=f"which network of a self-training checkpoint: {branches}")
    parser.add_argument("--prefix", default="", help="put the parameters under this name: backbone, for a ResNet that goes into DeepLabV2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an argument of the network that no file tells")
    parser.add_argument(
        "--branches", type=int, choices=(2, 4), help="atrous branches that DeepLabV2 sums: 2 in AdaptSegNet and DACS, 4 in ADVENT and FDA"
    )
    parser.add_argument("--label-space", default="", help="label space of the outputs, recorded in the file, e.g. cityscapes19")


def run(args: argparse.Namespace) -> int:
    """Converts one checkpoint. WeightsError: unreadable or misfitting input. ConfigError: unknown layout, impossible direction."""
    output, as_folder = pathlib.Path(args.output), args.output.endswith(("/", os.sep)) or pathlib.Path(args.output).is_dir()
    if as_folder and args.to == "segjax":
        raise ConfigError(f"--output={args.output}: a folder is a public layout's: name it with --to, or give --output=FILE.safetensors")
    if not as_folder and output.suffix != ".safetensors":
        raise ConfigError(f"--output={args.output}: expected a name that ends in .safetensors, or with --to a folder, DIR/")
    if output.exists() and output.resolve() == pathlib.Path(args.input).resolve():
        raise ConfigError(f"--output={args.output} is the input: choose another name")
    arrays, metadata, report = _import(args) if args.to == "segjax" else _export(args, as_folder)
    config = report.pop("config", None)
    public = networks.public_layout(args.to, "--to") if as_folder else None
    file = output / public.file if public else output
    safetensors_io.write(file, arrays, metadata)
    if public and config is not None:
        (output / public.config_file).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    report = {"source": pathlib.Path(args.input).name, "sha256": networks.hashes(args.input), **report}
    numbers = int(sum(np.size(value) for value in arrays.values()))
    report |= {"output_tensors": len(arrays), "output_numbers": numbers, "output_sha256": safetensors_io.sha256(file)}
    (output / "source.json" if as_folder else pathlib.Path(f"{output}.source.json")).write_text(json.dumps(report, indent=1) + "\n")
    print(f"{args.input}: {report['layout']}, {report['source_tensors']} tensors -> {output}: {len(arrays)} tensors, {numbers:,} numbers")
    return 0


def _import(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, Any]]:
    """The input as flat segjax arrays, the header's metadata, and what to report."""
    chosen = networks.settings(args.set) | ({"branches": args.branches} if args.branches else {})
    network = networks.from_public(args.input, layout=args.layout, branch=args.branch, settings=chosen)
    arrays, metadata = safetensors_io.flatten(network.variables), dict(network.metadata)
    if args.prefix:
        arrays = {path.replace("/", f"/{args.prefix}/", 1): value for path, value in arrays.items()}
        metadata["prefix"] = args.prefix
    if args.label_space:
        metadata["label_space"] = networks.label_space(args.label_space, network.spec)
    return arrays, metadata, dict(network.report)


def _export(args: argparse.Namespace, as_folder: bool) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, Any]]:
    """segjax weights under the names of a public layout (`format: pt` lets torch's loaders take it); in the report a folder's `config`."""
    public = networks.public_layout(args.to, "--to")
    if not public.reversible:
        ways = ", ".join(name for name, known in layouts.known().items() if known.reversible)
        raise ConfigError(f"--to={args.to}: this layout is read only: {ways} go both ways")
    flat, metadata = networks.segjax_file(args.input)
    arrays = networks.to_public(flat, metadata, public, str(args.input))
    kept: Mapping[str, str] = {key: metadata[key] for key in ("label_space",) if key in metadata}
    report: dict[str, Any] = {"layout": public.name, "source_tensors": len(flat)}
    if as_folder:
        report["config"] = networks.public_config(metadata, public, str(args.input))
    return arrays, {"format": "pt", **kept}, report
