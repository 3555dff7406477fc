"""Public checkpoint (torch pickle, safetensors, Torch7) to segjax weights, or segjax weights back to a public layout.

segjax convert --input=GTA2Cityscapes_multi.pth --output=weights.safetensors
segjax convert --input=weights.safetensors --to=deeplabv2_resnet --output=for_torch.safetensors

Strict both ways: every source key is used, every parameter is set, or one error lists the rest. Pickles are read by a restricted
reader that executes nothing. Beside the output lands OUTPUT.source.json: sha256 of both files, layout, network and counts.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import ConfigError, WeightsError
from segjax.verbs import build, variables
from segjax.weights import engine, safetensors_io, torch7, wrappers
from segjax.weights.enet import ENET_PYTORCH, ENET_TORCH7
from segjax.weights.resnet import DEEPLABV2_RESNET, RESNET_TORCHVISION
from segjax.weights.vgg import DEEPLABV2_VGG16

LAYOUTS = {layout.name: layout for layout in (ENET_TORCH7, ENET_PYTORCH, RESNET_TORCHVISION, DEEPLABV2_RESNET, DEEPLABV2_VGG16)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    names = ", ".join(LAYOUTS)
    parser.add_argument("--input", required=True, metavar="FILE", help="checkpoint, safetensors file or index, or a folder with one")
    parser.add_argument("--output", required=True, metavar="FILE.safetensors", help="what to write")
    parser.add_argument("--layout", default="auto", help=f"of the input: auto, {names}, or package.module:NAME of a Public layout")
    parser.add_argument("--to", default="segjax", help=f"segjax, or the layout to go back to: {names}, package.module:NAME")
    parser.add_argument("--branch", default="model", help="which network of a self-training checkpoint: model, ema_model, imnet_model")
    parser.add_argument("--prefix", default="", help="put the parameters under this name: backbone, for a ResNet that goes into DeepLabV2")
    parser.add_argument(
        "--branches", type=int, choices=(2, 4), help="atrous branches that DeepLabV2 sums: 2 in AdaptSegNet and DACS, 4 in ADVENT and FDA"
    )
    parser.add_argument("--label-space", default="", help="label space of the outputs, recorded in the file, e.g. cityscapes19")


def run(args: argparse.Namespace) -> int:
    """Converts one file. WeightsError: unreadable or misfitting input. ConfigError: unknown layout, impossible direction."""
    output = pathlib.Path(args.output)
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output={args.output}: expected a name that ends in .safetensors")
    if output.exists() and output.resolve() == pathlib.Path(args.input).resolve():
        raise ConfigError(f"--output={args.output} is the input: choose another name")
    arrays, metadata, report = _import(args) if args.to == "segjax" else _export(args)
    safetensors_io.write(output, arrays, metadata)
    report = {"source": pathlib.Path(args.input).name, "sha256": _hashes(pathlib.Path(args.input)), **report}
    numbers = int(sum(np.size(value) for value in arrays.values()))
    report |= {"output_tensors": len(arrays), "output_numbers": numbers, "output_sha256": safetensors_io.sha256(output)}
    pathlib.Path(f"{output}.source.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{args.input}: {report['layout']}, {report['source_tensors']} tensors -> {output}: {len(arrays)} tensors, {numbers:,} numbers")
    return 0


def _hashes(source: pathlib.Path) -> dict[str, str]:
    """sha256 of every file that was read: the one file, or the safetensors files of a folder or beside an index."""
    one = source.is_file() and source.suffix != ".json"
    files = [source] if one else sorted((source if source.is_dir() else source.parent).glob("*.safetensors"))
    return {file.name: safetensors_io.sha256(file) for file in files}


def _import(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, Any]]:
    """The input as flat segjax arrays, the header's metadata, and what to report."""
    metadata, removed = {}, ()
    if wrappers.kind(args.input) == "torch7":
        source, epsilon = torch7.read(args.input)
        metadata["bn_epsilon"] = repr(epsilon)
    else:
        source, removed = wrappers.read_state(args.input, branch=args.branch)
    public = _recognise(args.layout, source, args.input)
    spec = public.model(source)
    if args.branches:
        if "backbone" not in spec:
            raise ConfigError(f"--branches={args.branches}: layout {public.name} has no atrous classifier")
        spec["branches"] = args.branches
    network = build.resolve(spec, "--layout")
    like = safetensors_io.flatten(variables.shapes(network))
    layout = public.layout(source)
    arrays = engine.to_segjax(source, layout, like, name=str(args.input))
    ignored = len(source) - len(engine.to_source(arrays, layout))
    if args.prefix:
        arrays = {path.replace("/", f"/{args.prefix}/", 1): value for path, value in arrays.items()}
    metadata |= {"layout": public.name, "model": json.dumps(spec, sort_keys=True)}
    if args.label_space:
        space, _ = build.output_space(args.label_space, spec.get("num_classes", 0), "--label-space")
        metadata["label_space"] = space.name
    report = {"layout": public.name, "removed": removed, "model": spec, "source_tensors": len(source), "source_tensors_ignored": ignored}
    return arrays, metadata, report


def _export(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, Any]]:
    """segjax weights under the names of a public layout (safetensors; `format: pt` lets torch's loaders take it)."""
    public = _public(args.to, "--to")
    if not public.reversible:
        raise ConfigError(
            f"--to={args.to}: this layout is read only: {', '.join(p.name for p in LAYOUTS.values() if p.reversible)} go both ways"
        )
    flat, metadata = safetensors_io.read(args.input)
    if not any(path.startswith("params/") for path in flat):
        raise WeightsError(f"{args.input}: holds no segjax parameters (params/...) but {sorted(flat)[:3]}: convert it without --to")
    arrays = engine.to_source(flat, public.layout(flat), name=str(args.input))
    kept: Mapping[str, str] = {key: metadata[key] for key in ("label_space",) if key in metadata}
    return arrays, {"format": "pt", **kept}, {"layout": public.name, "source_tensors": len(flat)}


def _recognise(name: str, source: Mapping[str, np.ndarray], path: str) -> engine.Public:
    if name != "auto":
        return _public(name, "--layout")
    found = [public for public in LAYOUTS.values() if public.recognises(source)]
    if len(found) != 1:
        keys = sorted(source)[:10]
        raise WeightsError(
            f"{path}: {len(found)} known layouts fit its {len(source)} keys {keys}: name one of {', '.join(LAYOUTS)} with --layout"
        )
    return found[0]


def _public(name: str, flag: str) -> engine.Public:
    if name in LAYOUTS:
        return LAYOUTS[name]
    if ":" not in name:
        raise ConfigError(f"{flag}={name}: expected {', '.join(LAYOUTS)}, or package.module:NAME")
    found = build.import_string(name, flag)
    if not isinstance(found, engine.Public):
        raise ConfigError(f"{flag}={name}: is a {type(found).__name__}, expected a segjax.weights.engine.Public")
    return found
