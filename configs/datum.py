"""DATUM (Benigmim et al., CVPRW 2023) and every other row of a one-shot table: one target image, a generator, a host that adapts.

`:gta_cityscapes` or `:synthia_cityscapes`, then with commas
    host=daformer (default) | hrda | mic | mic_daformer | dacs | source_only      at the settings of configs/uda.py, with net=mit_b5 | r101
         diga | fda_contrastive                                                  the systems of configs/diga.py, configs/fda_contrastive.py
    generator=diffusion   DreamBooth on the image, then 2,975 images of things are the target (`sd`: a Stable Diffusion directory)
              fda         the source wears the image's low-frequency amplitudes inside the step; the image is the target
              none        the image alone is the target, or with images=full the whole unlabelled set (what one-shot is measured against)
    shots=3 (default) | 1   one-shot images (`image_1` to `image_3`, file names of the target set), each a run of all stages; rows of the
                            table and of the report average over them
`:camvid_one_shot[,generator=fda|none]` on photographs (ENet, DACS; one dusk image, three times, beside all of dusk) and `:quickstart` on
the embedded scenes run on two CPU cores. The last network counts; DATUM's scripts keep the best by target labels.
"""

from collections.abc import Mapping
from typing import Any

import base
import diga
import fda_contrastive
import uda
from ml_collections import ConfigDict

FAMILY = uda.HOSTS
OPTIONS = {
    "host": (*FAMILY, "diga", "fda_contrastive"),
    "generator": ("diffusion", "fda", "none"),
    "images": ("one", "full"),
    "net": uda.NETS,
    "shots": ("3", "1"),
}
SMALL = ("camvid_one_shot", "quickstart")
ONE_SHOT = ("aachen_000000_000019_leftImg8bit.png", "bremen_000000_000019_leftImg8bit.png", "zurich_000000_000019_leftImg8bit.png")
"""Any image of the target's training set serves; the paper averages over three at random."""
GENERATED = "segjax.data.readers.generated:Generated"
BETAS = (0.01,)


def get_config(arg="gta_cityscapes"):
    place, options = uda.parse(arg, (*uda.PLACES[:2], *SMALL), OPTIONS)
    if place in SMALL:
        if unknown := set(options) - {"generator"} or {"diffusion"} & set(options.values()):
            raise base.unknown(f"{place},{unknown.pop()}", tuple(f"{name}[,generator=fda|none]" for name in SMALL))
        return (_camvid if place == "camvid_one_shot" else _quickstart)(options.get("generator", "fda"))
    host, generator, images = (
        options.get(key, default) for key, default in (("host", "daformer"), ("generator", "diffusion"), ("images", "one"))
    )
    if images == "full" and generator == "diffusion":
        raise ValueError("images=full with generator=diffusion: one image makes the generated set; expected generator=none or fda")
    net = options.get("net", "mit_b5")
    config = uda.start(f"datum_{place}_{host}_{generator}_{images}", net)
    other = None if host in FAMILY else _system(config, host, place)
    config.sd, config.generated = "stable-diffusion-v1-4", 2975
    for number, name in enumerate(ONE_SHOT, 1):
        config[f"image_{number}"] = (name,)
    if images == "full":
        _adapt(config, "", host, place, generator, net, None, other)
        return config
    for shot in range(1, int(options.get("shots", "3")) + 1):
        alone = base.cityscapes(config, "train", labelled=False, names=config.get_oneway_ref(f"image_{shot}"))
        target = _generated(config, shot, alone) if generator == "diffusion" else alone
        _adapt(config, f"_{shot}", host, place, generator, net, target, other)
    return config


def _generated(config: Any, shot: int, image: Mapping[str, Any]) -> dict[str, Any]:
    """Stages that personalize a model on an image and generate with it; the data set of what they leave, 512x512, without labels."""
    base.add_verb(config, f"personalize_{shot}", "personalize", model=config.get_oneway_ref("sd"), image=image, steps=1000)
    model = f"{{stage:personalize_{shot}}}/step_1000"
    base.add_verb(config, f"generate_{shot}", "generate", model=model, plan="things", count=config.get_oneway_ref("generated"))
    return {"make": GENERATED, "root": f"{{stage:generate_{shot}}}", "labelled": False, "label_space": "cityscapes19"}


def _adapt(config: Any, suffix: str, host: str, place: str, generator: str, net: str, target: Mapping[str, Any] | None, other: Any) -> None:
    """The stages of a host. target: what it adapts to, None for the whole set. other: the config of a host that is a system."""
    drawn = generator == "diffusion"
    if other is not None:
        _adopt(config, other, suffix, target, drawn)
        return
    source, full, scored = uda.domains(config, place, uda.high(host))
    side = (1024, 1024) if uda.high(host) else (512, 512)  # of a generated image, whose short side becomes the picture's height
    if target is not None:
        target = {**target, "resize": side if drawn else full["resize"]}
    data = {"source": source, **uda.crops(host), **({} if host == "source_only" else uda.targets(target or full, place, host))}
    changes = {"betas": BETAS} if generator == "fda" and host != "source_only" else {}
    parts = {"model": uda.network(config, net, host), "optimizer": uda.optimizer(net), "evaluate": scored, "data": data}
    base.add_stage(config, f"{host}{suffix}", method=uda.method(host, place, **changes), frozen=uda.frozen(config, host), **parts)
    if suffix:
        base.add_to_row(config, host, f"{host}{suffix}")


def _system(config: Any, host: str, place: str) -> Any:
    """The config of a host of several stages. Its run's values become this run's, so that overriding them reaches its stages."""
    if host == "fda_contrastive" and place != "gta_cityscapes":
        raise base.unknown(f"host={host} of {place}", ("gta_cityscapes,host=fda_contrastive",))
    other = diga.get_config(f"{place},translator=fda") if host == "diga" else fda_contrastive.get_config(f"{place},row=cl_pl")
    for key in other:
        if key not in ("name", "order", "stages", "mesh"):
            if key in config:  # else the old field would take the value and not the link
                del config[key]
            config[key] = other.get_ref(key)
    config.mesh = other.mesh
    return other


def _adopt(config: Any, other: Any, suffix: str, target: Mapping[str, Any] | None, drawn: bool) -> None:
    """Appends another config's stages with a suffix, their target images replaced wherever they are read."""
    rename = {name: f"{name}{suffix}" for name in other.order}
    for name in other.order:
        spec = _replaced(other.stages[name], rename, target, drawn)
        for key in ("start_from", "networks"):
            if spec.get(key):
                spec[key] = rename[spec[key]] if isinstance(spec[key], str) else tuple(rename[part] for part in spec[key])
        if drawn and spec.get("size"):  # of images for labels and centroids; generated ones are square
            spec["size"] = (spec["size"][0], spec["size"][0])
        base.add_spec(config, rename[name], spec)
        if suffix and spec.get("verb", "train") == "train":
            base.add_to_row(config, name, rename[name])


def _replaced(value: Any, rename: Mapping[str, str], target: Mapping[str, Any] | None, drawn: bool) -> Any:
    """A stage's values with other names of stages and, for Cityscapes' training set, the target that this config adapts to."""
    again = lambda part: _replaced(part, rename, target, drawn)
    if isinstance(value, ConfigDict | Mapping):
        links = {"preserve_field_references": True} if isinstance(value, ConfigDict) else {}
        if target is not None and value.get("make") == base.CITYSCAPES and value.get("split") == "train":
            resize = (1024, 1024) if drawn else value.get("resize")
            return {**target, "resize": resize, "label_space": value["label_space"]}
        return {key: again(part) for key, part in value.items(**links) if not (drawn and target and key == "target_crops")}
    if isinstance(value, tuple):
        return tuple(again(part) for part in value)
    if isinstance(value, str):
        for old, new in rename.items():
            value = value.replace(f"{{stage:{old}}}", f"{{stage:{new}}}")
    return value


def _camvid(generator: str) -> Any:
    """Day (0006R0, 0016E5) to dusk (0001TP), ENet. Three dusk images from the sequence's quarters, the only ones that their stages see."""
    config = base.run("datum_camvid_one_shot", steps=200, batch_size=4)
    config.data, config.weights = "data/camvid", "weights/enet_cityscapes.safetensors"
    for number, name in enumerate(("0001TP_007140", "0001TP_007620", "0001TP_008100"), 1):
        config[f"image_{number}"] = (name,)
    camvid = {"make": base.FOLDERS, "label_space": "camvid11", "file_list": base.under_data(config, "train.txt"), "cache": True}
    dusk = {**camvid, "include": ("0001TP",)}
    model = {"make": base.ENET, "num_classes": 11, "layout": "torch7", "dtype": "float32", "weights": config.get_oneway_ref("weights")}
    shared = {
        "model": model,
        "optimizer": {"name": "adam", "lr": 5e-4, "weight_decay": 2e-4, "schedule": "poly", "power": 0.9},
        "evaluate": {"dusk": {**dusk, "split": "train", "size": (360, 480), "upsample": "prediction"}},
    }
    data = {"source": {**camvid, "include": ("0006R0", "0016E5")}, "crop": (256, 384)}
    images = [{**dusk, "labelled": False, "names": config.get_oneway_ref(f"image_{number}")} for number in (1, 2, 3)]
    return _small(config, shared, data, (360, 480), {**dusk, "labelled": False}, images, generator, steps=60, batch_size=2)


def _quickstart(generator: str) -> Any:
    """The same on the embedded street scenes: three scenes at dusk, each by itself."""
    config = base.run("datum_quickstart", steps=250, batch_size=8)
    scenes = {"make": base.STREET_SCENES, "size": (96, 192), "split": "train"}
    dusk = {**scenes, "look": "dusk", "labelled": False}
    shared = {
        "model": {"make": base.ENET, "num_classes": 19, "layout": "pytorch", "dtype": "float32"},
        "optimizer": {"name": "adam", "lr": 2e-3, "weight_decay": 2e-4, "schedule": "poly", "power": 0.9},
        "evaluate": {"dusk": {**scenes, "look": "dusk", "length": 64, "split": "val"}},
    }
    data = {"source": {**scenes, "look": "day", "length": 2000}, "crop": (64, 128)}
    images = [{**dusk, "length": 1, "seed": number} for number in (1, 2, 3)]
    return _small(config, shared, data, (96, 192), {**dusk, "length": 2000}, images, generator, steps=100, batch_size=8)


def _small(config: Any, shared: dict, data: dict, whole: tuple[int, int], full: dict, images: list, generator: str, **train: int) -> Any:
    """Day alone; from there AdaBN and DACS, with all of dusk and with each of three images of it.

    DACS's teacher predicts: its BatchNorm statistics are those of the target pictures that it labels.
    """
    base.add_stage(config, "source_only", method=base.source_only(), data=data, **shared)
    gentle = {**shared, "optimizer": {**shared["optimizer"], "lr": shared["optimizer"]["lr"] * 0.2}, "start_from": "source_only"}
    common = {"ema_decay": 0.98, "jitter": 0.2, "source_jitter": True, "predicts": "teacher"}
    for suffix, target in (("_full", full), *((f"_{number}", image) for number, image in enumerate(images, 1))):
        looks = {"betas": BETAS, "stylized_share": 0.5} if generator == "fda" else {}
        view = {**data, "target": target, "crop": whole, "flip": False}
        one = {"steps": 8 if suffix == "_full" else 1, "batch_size": 8 if suffix == "_full" else 1}
        base.add_stage(config, f"adabn{suffix}", method={"make": base.ADABN}, data=view, **gentle, **one)
        method = uda.method("dacs", "", **common, **looks)
        base.add_stage(config, f"dacs{suffix}", method=method, data={**data, "target": target}, **gentle, **train)
        if suffix != "_full":
            base.add_to_row(config, "adabn", f"adabn{suffix}")
            base.add_to_row(config, "dacs", f"dacs{suffix}")
    return config
