"""DACS, DAFormer, HRDA and MIC at their code's settings: `:PLACE[,host=...][,net=mit_b5|r101]`, default gta_cityscapes, daformer, mit_b5.

PLACE: gta_cityscapes, synthia_cityscapes (16 classes reported), cityscapes_acdc, cityscapes_dark_zurich. host: daformer, hrda, mic (MIC
over HRDA), mic_daformer, dacs, source_only. All: AdamW 6e-5 (head x10, no decay on the encoder's norms), 1,500 steps of warm-up, linear to
0 over 40,000 steps, batch 2, rare-class sampling at T = .01 (not dacs and source_only), float32 (`--config.dtype=bfloat16`).

`weights` is the ImageNet encoder, which the feature distance is measured to as well: `segjax convert --input=mit_b5.pth --prefix=backbone`
(r101: open-mmlab's resnet101_v1c). `data` holds gta5, RAND_CITYSCAPES, cityscapes, acdc and dark_zurich as their archives unpack.
DAFormer reads half resolution (Cityscapes at 1024x512, crops of 512), HRDA full (crops of 1024, details of 512). The last network counts.
"""

from collections.abc import Mapping
from typing import Any

import base

HOSTS = ("daformer", "hrda", "mic", "mic_daformer", "dacs", "source_only")
NETS = ("mit_b5", "r101")
PLACES = ("gta_cityscapes", "synthia_cityscapes", "cityscapes_acdc", "cityscapes_dark_zurich")
ACDC, DARK_ZURICH = "segjax.data.readers.acdc:ACDC", "segjax.data.readers.dark_zurich:DarkZurich"
MARGINS, RARE_CLASS = "segjax.data.margins:Margins", "segjax.data.sampling:rare_class"
NETWORKS = {
    ("mit_b5", False): {"make": "segjax.nets.daformer:DAFormer", "variant": "b5"},
    ("mit_b5", True): {"make": "segjax.nets.hrda:HRDA", "variant": "b5", "window": (512, 512)},
    ("r101", False): {"make": "segjax.nets.dlv2:DLV2", "backbone": "resnet101"},
    ("r101", True): {"make": "segjax.nets.hrda:HRDADLV2", "backbone": "resnet101", "window": (512, 512)},
}
WEIGHTS = {"mit_b5": "weights/mit_b5.safetensors", "r101": "weights/resnet101_v1c.safetensors"}


def get_config(arg="gta_cityscapes"):
    place, options = parse(arg, PLACES, {"host": HOSTS, "net": NETS})
    host, net = options.get("host", "daformer"), options.get("net", "mit_b5")
    config = start(f"uda_{place}_{host}_{net}", net)
    source, target, scored = domains(config, place, high(host))
    data = {"source": source, **crops(host)}
    if host != "source_only":
        data |= targets(target, place, host)
    shared = {"model": network(config, net, host), "optimizer": optimizer(net), "evaluate": scored}
    base.add_stage(config, host, method=method(host, place), data=data, frozen=frozen(config, host), **shared)
    return config


def high(host: str) -> bool:
    """Whether a host reads full resolution."""
    return host in ("hrda", "mic")


def start(name: str, net: str) -> Any:
    config = base.run(name, steps=40_000, batch_size=2)
    config.checkpoint_every, config.evaluate_every, config.log_every = 2000, 4000, 50
    config.mesh.data = 1  # batch 2; on n devices a multiple of n
    config.data, config.weights, config.dtype = "data", WEIGHTS[net], "float32"
    return config


def network(config: Any, net: str, host: str) -> dict[str, Any]:
    weights = {"weights": config.get_oneway_ref("weights"), "classifier": "fresh"}  # the file has an encoder alone: the head is drawn
    return {**NETWORKS[net, high(host)], "num_classes": 19, "remat": "wide", "dtype": config.get_oneway_ref("dtype"), **weights}


def optimizer(net: str) -> dict[str, Any]:
    warm = {"schedule": "poly", "power": 1.0, "warmup": "scaled", "warmup_steps": 1500, "warmup_ratio": 1e-6}
    norms = (r"params/backbone/.*norm",) if net == "mit_b5" else ()
    adamw = {"name": "adamw", "lr": 6e-5, "betas": (0.9, 0.999), "weight_decay": 0.01, "no_decay": norms}
    return {**adamw, "multipliers": ((r"params/decode_head/", 10.0),), **warm}


def method(host: str, place: str, **changes: Any) -> dict[str, Any]:
    """The method of a host with every knob that an override may reach. changes: of knobs that it has."""
    if host == "source_only":
        return base.source_only(**changes)
    knobs = {"ema_decay": 0.999, "threshold": 0.968, "mix_weight": 1.0, "jitter": 0.2, "jitter_probability": 0.8, "blur_probability": 0.5}
    knobs |= {"ignored": "value", "mean_over": "all", "teacher": "batch", "normalise": "apart", "statistics": "joint"}
    knobs |= {"predicts": "student", "betas": (), "variant": "centred", "stylized_share": 1.0, "accumulate": 1}
    if host == "dacs":
        own = {"ema_decay": 0.99, "jitter": 0.25, "pool": "image", "source_jitter": False}
        return {"make": "segjax.methods.dacs:make", **knobs, **own, **changes}
    dark, masks = place in PLACES[2:], host.startswith("mic")
    knobs |= {
        "pool": "batch",
        "feature_weight": 0.005,
        "feature_classes": (6, 7, 11, 12, 13, 14, 15, 16, 17, 18),
        "feature_min_ratio": 0.75,
    }
    knobs |= {"mask_weight": float(masks), "mask_block": 64 if high(host) else 32, "mask_ratio": 0.7}
    knobs |= {"mask_images": "half" if dark else "target", "mask_view": not dark}
    if high(host):
        knobs |= {"detail_weight": 0.1, "margins": not dark}
    else:
        knobs |= {"ignore_top": 0 if dark else 15, "ignore_bottom": 0 if dark else 120}
    return {"make": "segjax.methods.daformer:make", **knobs, **changes}


def frozen(config: Any, host: str) -> dict[str, Any]:
    return {} if host in ("dacs", "source_only") else {"imagenet": config.get_oneway_ref("weights")}


def crops(host: str) -> dict[str, Any]:
    """How source crops are cut and drawn; target crops have no labels, so no quality."""
    found: dict[str, Any] = {"crop": (1024, 1024) if high(host) else (512, 512), "quality": {"max_share": 0.75}, "workers": 2}
    if host not in ("dacs", "source_only"):
        sampling = {"make": RARE_CLASS, "temperature": 0.01, "min_pixels": 3000, "min_crop_ratio": 2.0 if high(host) else 0.5}
        found["sampling"] = sampling
    return found


def targets(target: Mapping[str, Any], place: str, host: str) -> dict[str, Any]:
    """`data.target`; for HRDA with the margins in which its pseudo-labels do not count."""
    if not high(host) or place in PLACES[2:]:
        return {"target": target}
    margins = {"make": MARGINS, "dataset": target, "top": 30, "bottom": 240, "left": 30, "right": 30}
    return {"target": margins, "target_labels": True}


def domains(config: Any, place: str, full: bool) -> tuple[dict, dict, dict]:
    """(source, unlabelled target, scores) of a place, at full or half resolution. GTA5's 1914x1052 keeps its ratio."""
    city, snow = ((1024, 2048), (1080, 1920)) if full else ((512, 1024), (540, 960))
    windows = {"window": (1024, 1024), "stride": (512, 512)} if full else {}
    scored = {"upsample": "logits", **windows}
    if place in PLACES[2:]:
        reader, folder = (ACDC, "acdc") if place == "cityscapes_acdc" else (DARK_ZURICH, "dark_zurich")
        images = {"make": reader, "root": base.under_data(config, folder), "label_space": "cityscapes19"}
        val = {**images, "split": "val", "size": snow, "score": "mIoU19", **scored}
        return base.cityscapes(config, "train", resize=city), {**images, "split": "train", "labelled": False, "resize": snow}, {folder: val}
    if place == "gta_cityscapes":
        source = base.gta5(config, resize=(1407, 2560) if full else (704, 1280))
    else:
        source = base.synthia(config, resize=(1520, 2560) if full else (760, 1280))
    score = "mIoU19" if place == "gta_cityscapes" else "mIoU16"
    val = {**base.cityscapes(config, "val"), "size": city, "score": score, **scored}
    return source, base.cityscapes(config, "train", labelled=False, resize=city), {"cityscapes": val}


def parse(arg: str, places: tuple[str, ...], known: Mapping[str, tuple[str, ...]]) -> tuple[str, dict[str, str]]:
    """'place,key=value,...' -> (place, options). ValueError names what is unknown and what there is."""
    place, *pairs = arg.split(",")
    options = dict(pair.partition("=")[::2] for pair in pairs)
    if place not in places:
        raise base.unknown(place, tuple(f"{name}[,{'=...][,'.join(known)}=...]" for name in places))
    for name, value in options.items():
        if value not in known.get(name, ()):
            raise base.unknown(f"{name}={value}", tuple(f"{key}={choice}" for key, choices in known.items() for choice in choices))
    return place, options
