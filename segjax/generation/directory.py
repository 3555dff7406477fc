"""A Stable Diffusion directory as diffusers lays it out, read into networks and written back.

Read: old and new spellings, safetensors or .bin (executing nothing), single or sharded, variants such as `fp16` and `non_ema`. The safety
checker and its feature extractor are neither run nor written. Written in the form and types that were read, with the configs as
they came, so that diffusers' StableDiffusionPipeline loads it. Layout: facts of huggingface diffusers pipelines/pipeline_utils.py.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segjax.errors import WeightsError
from segjax.generation.diffusion import Networks
from segjax.nets.clip import TextTransformer
from segjax.nets.unet import UNet
from segjax.nets.vae import VAE
from segjax.weights import engine, safetensors_io, sources, walk
from segjax.weights.clip_hf import CLIP_TEXT_HF
from segjax.weights.diffusers_unet import UNET_DIFFUSERS
from segjax.weights.diffusers_vae import VAE_DIFFUSERS

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
FOLDERS = {"text": "text_encoder", "unet": "unet", "vae": "vae"}
_KINDS = {"text": (CLIP_TEXT_HF, TextTransformer), "unet": (UNET_DIFFUSERS, UNet), "vae": (VAE_DIFFUSERS, VAE)}
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", "fp16", "non_ema")
_IGNORED = ("safety_checker", "feature_extractor", "image_encoder")


@dataclasses.dataclass(frozen=True)
class Part:
    """One network. file: what was read. form: its spelling. types: of the source's tensors that were not float32, by key.

    config: its config.json. variables: {"params": ...}, nested, float32.
    """

    module: Any
    variables: Mapping[str, Any]
    config: Mapping[str, Any]
    form: engine.Layout
    types: Mapping[str, str]
    file: pathlib.Path


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """text, unet, vae: networks. scheduler: its config. index: model_index.json. tokenizer: folder of the tokenizer's files."""

    text: Part
    unet: Part
    vae: Part
    scheduler: Mapping[str, Any]
    index: Mapping[str, Any]
    tokenizer: pathlib.Path

    @property
    def networks(self) -> Networks:
        return Networks(self.text.module, self.unet.module, self.vae.module)

    @property
    def variables(self) -> dict[str, Any]:
        return {name: getattr(self, name).variables for name in FOLDERS}

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the images that the UNet was made for."""
        side = self.unet.module.sample_size * self.vae.module.stride
        return side, side

    def sha256(self) -> str:
        """Over the bytes of the three networks' weights files."""
        return _sha256({name: getattr(self, name).file for name in FOLDERS})


def sha256(path: str | os.PathLike, variant: str = "") -> str:
    """`StableDiffusion.sha256` of a directory without reading its networks. WeightsError: a network's weights are missing."""
    return _sha256({name: locate(pathlib.Path(path) / folder, variant) for name, folder in FOLDERS.items()})


def read(path: str | os.PathLike, *, variant: str = "", dtype: DTypeLike = jnp.float32) -> StableDiffusion:
    """Every network of a directory, strictly. variant: "fp16", say, for files named so; "" takes the plain ones, or what there is.

    WeightsError: no such directory, another pipeline's, a part that is missing, damaged or does not fit its config.
    """
    path = pathlib.Path(path)
    index = _json(path / INDEX, "not a diffusers directory")
    known = (*FOLDERS.values(), "tokenizer", "scheduler", *_IGNORED)
    for name, value in index.items():
        if isinstance(value, list) and any(value) and name not in known:
            raise WeightsError(f"{path / INDEX}: has a {name}, which Stable Diffusion 1.x and 2.x have not: another pipeline's directory")
    if not (path / "tokenizer").is_dir():
        raise WeightsError(f"{path}: has no folder tokenizer: fetch the whole directory")
    parts = {name: _part(path / folder, name, variant, dtype) for name, folder in FOLDERS.items()}
    return StableDiffusion(**parts, scheduler=_json(path / SCHEDULER, "no scheduler"), index=index, tokenizer=path / "tokenizer")


def write(path: str | os.PathLike, model: StableDiffusion) -> None:
    """Writes the directory; model_index.json comes last, so a directory that has one is whole.

    Other weights than those that were read: `dataclasses.replace(model, unet=dataclasses.replace(model.unet, variables=..., types={}))`.
    """
    path = pathlib.Path(path)
    try:
        for name, folder in FOLDERS.items():
            part, place = getattr(model, name), path / folder
            place.mkdir(parents=True, exist_ok=True)
            arrays = walk.to_source(safetensors_io.flatten(jax.device_get(part.variables)), part.form, name=str(place))
            arrays = {key: _typed(value, part.types.get(key)) for key, value in arrays.items()}
            stem = "model" if name == "text" else _STEMS[0]
            safetensors_io.write(place / f"{stem}.safetensors", arrays, {"format": "pt"})
            _write_json(place / "config.json", part.config)
        _write_json(path / SCHEDULER, model.scheduler)
        shutil.copytree(model.tokenizer, path / "tokenizer", dirs_exist_ok=True)
        nothing = {name: [None, None] for name in _IGNORED if name in model.index}
        about = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
        _write_json(path / INDEX, {**_without_flax(model.index), **nothing, **about})
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror}): choose another folder or free space") from error


def locate(folder: pathlib.Path, variant: str = "") -> pathlib.Path:
    """The weights file, or the index of its shards, of one network. WeightsError lists what is there instead."""
    for kind in (variant,) if variant else _VARIANTS:
        dotted = f".{kind}" if kind else ""
        for ending in (f".safetensors.index{dotted}.json", f"{dotted}.safetensors", f"{dotted}.bin"):
            for stem in _STEMS:
                if (folder / f"{stem}{ending}").is_file():
                    return folder / f"{stem}{ending}"
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    hint = ": it holds Flax weights, fetch the main revision" if any(name.endswith(".msgpack") for name in there) else ""
    wanted = f" variant {variant!r} of" if variant else ""
    raise WeightsError(f"{folder}: holds {there or 'nothing'}, expected{wanted} {_STEMS[0]} or {_STEMS[1]}, .safetensors or .bin{hint}")


def _part(folder: pathlib.Path, name: str, variant: str, dtype: DTypeLike) -> Part:
    public, make = _KINDS[name]
    source = sources.read(locate(folder, variant))
    spec = {key: value for key, value in public.model(source.arrays, source.config).items() if key != "make"}
    module = make(**spec, dtype=dtype)
    form = public.layout(source.arrays)
    flat = walk.to_segjax(source.arrays, form, _shapes(module), name=str(source.path))
    return Part(module, safetensors_io.unflatten(flat), source.config, form, sources.dtypes(source), source.path)


@functools.lru_cache(maxsize=16)
def _shapes(module: Any) -> dict[str, Any]:
    """Flat path -> ShapeDtypeStruct of a network's parameters."""
    like = jax.eval_shape(module.init, jax.random.key(0), *module.example())
    return safetensors_io.flatten({"params": like["params"]})


def _typed(value: np.ndarray, kind: str | None) -> np.ndarray:
    return value if kind is None else value.astype(jnp.dtype(kind))


def _without_flax(index: Mapping[str, Any]) -> dict[str, Any]:
    """Class names of a Flax revision as those of the networks that are written."""
    plain = lambda value: [part.removeprefix("Flax") if isinstance(part, str) else part for part in value]
    return {name: plain(value) if isinstance(value, list) else value for name, value in index.items()}


def _sha256(weights: Mapping[str, pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for name, path in weights.items():
        for file in sources.files(path):
            digest.update(f"{name} {safetensors_io.sha256(file)}\n".encode())
    return digest.hexdigest()


def _json(path: pathlib.Path, problem: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path.parent}: {problem}: {path.name} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds {type(content).__name__}, expected an object")
    return content


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
