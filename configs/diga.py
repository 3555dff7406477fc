"""DiGA (Shen et al., CVPR 2023): distil to generalize, then adapt. Warm-up by symmetric distillation, then self-training by consensus.

`:gta_cityscapes`, `:synthia_cityscapes`, `:semi_cityscapes` at the settings of its code, `:camvid_day_dusk` and `:quickstart` to run
on two CPU cores. Options follow with commas: `translator=gan|fda|identity` and `perceptual=on`, its term by VGG19's weights in `vgg` (GTA5,
SYNTHIA), `split=2|4|8|16` (semi: 1/2 to 1/16 of Cityscapes labelled) and `row`:

    diga           translator, warm-up, labels of two scales, centroids, self-training, and a second round
    dg             domain generalisation: the warm-up without a translator and without a target image
    no_symmetric   the clean view alone teaches             no_crossdomix   the second view is the photometric one
    threshold      self-training on the teacher's labels above 0.9 instead of consensus
    faithful       what the released code does besides (`segjax.methods.diga_warmup`): three switches on, and SYNTHIA's rising rate

`data` holds the data sets as their archives unpack, `names` DiGA's list of 18,111 GTA5 frames (all without it), `splits` its lists of the
semi-supervised splits, `weights` the ImageNet backbone (`segjax convert --layout=resnet_caffe --prefix=backbone`; semi: an HRNet-W48).
Deliberate differences: images are resized bilinear with antialias (there bicubic), the last step's network is kept (there the best by
target labels), and the second scale of labels and scores is the 8-bit image at half size.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import base
from ml_collections import config_dict

ROWS = ("diga", "dg", "no_symmetric", "no_crossdomix", "threshold", "faithful")
OPTIONS = {"translator": ("gan", "fda", "identity"), "perceptual": ("off", "on"), "row": ROWS, "split": ("2", "4", "8", "16")}
TAKES = {
    "gta_cityscapes": ("translator", "perceptual", "row"),
    "synthia_cityscapes": ("translator", "perceptual", "row"),
    "semi_cityscapes": ("split", "row"),
    "camvid_day_dusk": ("row",),
    "quickstart": (),
}
PSEUDO, PRODA, OCR = "segjax.data.pseudo:PseudoLabelled", "segjax.nets.proda:ProDA", "segjax.nets.ocr:HRNetOCR"
TRANSLATOR, TRANSLATOR_METHOD = "segjax.nets.translator:Translator", "segjax.methods.diga_translator:make"
TWO_SCALES = {"scales": (1.0, 0.5), "combine": "max"}
STRETCHED = {"scale": (0.7, 1.0), "independent": True, "small": "fill"}
"""Crops of a picture whose height and width are scaled apart; the whole picture where it is too small (RandomSized_and_Crop)."""


def get_config(arg="gta_cityscapes"):
    where, options = _parse(arg)
    if where == "gta_cityscapes":
        return _gta_cityscapes(**options)
    if where == "synthia_cityscapes":
        return _synthia_cityscapes(**options)
    if where == "semi_cityscapes":
        return _semi_cityscapes(**options)
    return _camvid_day_dusk(**options) if where == "camvid_day_dusk" else _quickstart()


@dataclasses.dataclass
class Kit:
    """What the stages of one place have in common. shared: model, optimizer and evaluate. data: of both kinds of training, without target.

    warm, train: what warm-up and self-training add, `method` being knobs. target: the unlabelled images; truth: the same with the labels
    that pseudo-labels are scored by. size: of the images for centroids.
    """

    config: Any
    shared: Mapping[str, Any]
    data: Mapping[str, Any]
    warm: Mapping[str, Any]
    train: Mapping[str, Any]
    target: Mapping[str, Any]
    truth: Mapping[str, Any]
    size: Any = None


def _warmup(kit: Kit, name: str, **changes) -> None:
    method = base.diga_warmup(**{**kit.warm["method"], **changes.pop("method", {})})
    reads_target = method["second_view"] != "photometric" or method["faithful_statistics"]
    data = {**kit.data, "target": kit.target if reads_target else {}, **kit.warm["data"]}
    rest = {key: value for key, value in kit.warm.items() if key not in ("method", "data")}
    base.add_stage(kit.config, name, **{**kit.shared, "method": method, "data": data, "frozen": _translator_of(method), **rest, **changes})


def _selftrain(kit: Kit, name: str, *, start: str, labels: str, centroids: str, **changes) -> None:
    """Self-training from the network of the stage `start` with the labels and centroids of earlier stages; neither for a threshold."""
    method = base.diga_selftrain(**{**kit.train["method"], **changes.pop("method", {})})
    labelled = {"target": {"make": PSEUDO, "dataset": kit.target, "labels": f"{{stage:{labels}}}"}, "target_labels": True}
    data = {**kit.data, "target": kit.target, **(labelled if labels else {}), **kit.train["data"]}
    frozen = _translator_of(method) | ({"centroids": f"{{stage:{centroids}}}/centroids.safetensors"} if centroids else {})
    rest = {key: value for key, value in kit.train.items() if key not in ("method", "data")}
    parts = {**kit.shared, "data": data, "frozen": frozen, "start_from": start, **rest, **changes}
    base.add_stage(kit.config, name, method=method, **parts)


def _translator_of(method: Mapping[str, Any]) -> dict[str, str]:
    trained = method["translator"] == "gan" and method["second_view"] != "photometric"
    return {"translator": "{stage:translator}/weights.safetensors"} if trained else {}


def _labels(kit: Kit, name: str, network: str, **changes) -> None:
    base.add_labels(kit.config, name, networks=(network,), dataset=kit.truth, **{**TWO_SCALES, **changes})


def _rows(kit: Kit, row: str) -> None:
    """The stages of one row, from the translator to the second round."""
    warm, train = _changes(row)
    _warmup(kit, "warmup", method=warm)
    if row == "dg":
        return
    if row == "threshold":
        _selftrain(kit, "selftrain", start="warmup", labels="", centroids="", method=train)
        return
    _labels(kit, "pseudo", "warmup")
    base.add_centroids(kit.config, "centroids", network="warmup", dataset=kit.target, size=kit.size)
    _selftrain(kit, "selftrain", start="warmup", labels="pseudo", centroids="centroids", method=train)
    if row in ("diga", "faithful"):  # the second round keeps the first one's centroids, as the code's README has it
        _labels(kit, "pseudo_2", "selftrain")
        _selftrain(kit, "selftrain_2", start="selftrain", labels="pseudo_2", centroids="centroids", method=train)


def _changes(row: str) -> tuple[dict, dict]:
    """What a row changes in the methods of warm-up and self-training."""
    both = {
        "no_symmetric": {"reverse_weight": 0.0},
        "no_crossdomix": {"second_view": "photometric"},
        "faithful": {"faithful_view": True, "faithful_teacher": True},
    }.get(row, {})
    warm = both | {"dg": {"second_view": "photometric", "chain": "generalisation"}, "faithful": {"faithful_statistics": True}}.get(row, {})
    return warm, both | ({"selection": "threshold"} if row == "threshold" else {})


def _translator(kit: Kit, translator: str, row: str, crops: Mapping[str, Any], perceptual: str = "off") -> None:
    """The stage that trains the translator, where a row needs one."""
    if translator != "gan" or row in ("dg", "no_crossdomix"):
        return
    adam = {"name": "adam", "lr": 1e-4, "betas": (0.5, 0.999), "schedule": "poly", "power": 0.9}
    knobs = {"adversarial_weight": 0.5, "cycle_weight": 10.0, "edge_weight": 20.0, "perceptual_weight": 0.0, "self_weight": 0.001}
    frozen = {}
    if perceptual == "on":
        kit.config.vgg = "weights/vgg19.pth"  # torchvision's
        knobs["perceptual_weight"], frozen = 0.1, {"vgg": kit.config.get_oneway_ref("vgg")}
    base.add_stage(
        kit.config,
        "translator",
        method={"make": TRANSLATOR_METHOD, **knobs, "judge_width": 64, "judge_scales": 3},
        model={"make": TRANSLATOR, "width": 64, "blocks": 4, "dtype": "float32"},
        optimizer=adam,
        data={**kit.data, "target": kit.target, **crops},
        evaluate={},
        frozen=frozen,
        steps=50_000,
        batch_size=2,
    )


def _two(low: tuple[int, int], high: tuple[int, int], shares: tuple[int, int], **rule) -> tuple[dict, dict]:
    """Crops of the low- and of the high-resolution image, in these shares of a batch."""
    return tuple({"resize": size, "share": float(share), **rule} for size, share in zip((low, high), shares, strict=True))


def _paper(name: str) -> Any:
    config = base.run(name, steps=80_000, batch_size=3)
    config.checkpoint_every, config.evaluate_every, config.log_every = 2000, 10_000, 100
    config.mesh.data = 1  # three or four images a step; on n devices a multiple of n
    config.data, config.weights = "data", "weights/resnet101_backbone.safetensors"
    return config


def _proda(config: Any, classes: int, val: dict[str, Any]) -> dict[str, Any]:
    """Network, optimizer and scores from GTA5 and from SYNTHIA."""
    model = {
        "make": PRODA,
        "num_classes": classes,
        "backbone": "resnet101",
        "normalization": "caffe_128",
        "remat": "wide",
        "dtype": "float32",
    }
    sgd = {"name": "sgd", "lr": 2.5e-4, "momentum": 0.9, "weight_decay": 5e-4, "multipliers": (("params/head/", 10.0),)}
    return {
        "model": {**model, "weights": config.get_oneway_ref("weights"), "classifier": "fresh"},
        "optimizer": {**sgd, "schedule": "poly", "power": 0.9},
        "evaluate": {"cityscapes": {**val, **TWO_SCALES, "upsample": "logits"}},
    }


def _gta_cityscapes(translator: str = "gan", row: str = "diga", perceptual: str = "off"):
    config = _paper(f"diga_gta_{row}")
    config.names = config_dict.placeholder(str)
    source = base.gta5(config, resize=None, names=config.get_oneway_ref("names"))
    target, truth = (base.cityscapes(config, "train", labelled=labelled) for labelled in (False, True))
    quality = {"min_share": 0.02, "redraws": 4}
    low, high, city = (720, 1280), (1052, 1914), ((512, 1024), (1024, 2048))
    shares = (2, 2) if row == "dg" else (1, 2)
    kit = Kit(
        config,
        shared=_proda(config, 19, {**base.cityscapes(config, "val"), "score": "mIoU19"}),
        data={"source": source, "crop": (512, 896), "quality": quality, "workers": 2},
        warm={
            "method": {"translator": translator},
            "data": {"source_crops": _two(low, high, shares, **STRETCHED), "target_crops": _two(*city, shares)},
            "batch_size": sum(shares),
        },
        train={
            "method": {"translator": translator},
            "data": {"source_crops": _two(low, high, (2, 1), **STRETCHED), "target_crops": _two(*city, (2, 1), **STRETCHED)},
        },
        target=target,
        truth=truth,
        size=(512, 1024),
    )
    _translator(kit, translator, row, {"source_crops": _two(low, high, (1, 1)), "target_crops": _two(*city, (1, 1))}, perceptual)
    _rows(kit, row)
    return config


def _synthia_cityscapes(translator: str = "gan", row: str = "diga", perceptual: str = "off"):
    """16 classes, hard pixels, lambda and reverse weight 0.25; the warm-up's learning rate rises over 1,000 steps, as was meant there."""
    config = _paper(f"diga_synthia_{row}")
    space = {"label_space": "synthia16"}
    source = base.synthia(config, resize=None, **space)
    target, truth = (base.cityscapes(config, "train", labelled=labelled, **space) for labelled in (False, True))
    low, high, city = (760, 1280), (1140, 1920), ((512, 1024), (1024, 2048))
    knobs = {"translator": translator, "hard": (0.7, 100_000), "reverse_weight": 0.25, "distill_weight": 0.25}
    shared = _proda(config, 16, {**base.cityscapes(config, "val", **space), "score": "mIoU16"})
    rises = {"warmup": "delayed", "warmup_steps": 1000}
    if row == "faithful":  # its call mixes up the arguments: a rate of lr i / 60,000, rising to the end
        rises = {"warmup": "delayed", "warmup_steps": 60_000, "schedule": "constant"}
    kit = Kit(
        config,
        shared=shared,
        data={"source": source, "crop": (512, 896), "quality": {"min_share": 0.02, "redraws": 4}, "workers": 2},
        warm={
            "method": {**knobs, "chain": "synthia"},
            "data": {"source_crops": _two(low, high, (1, 3)), "target_crops": _two(*city, (1, 3))},
            "optimizer": {**shared["optimizer"], **rises},
            "steps": 60_000,
            "batch_size": 4,
        },
        train={
            "method": knobs,
            "data": {"source_crops": _two(low, high, (1, 2), **STRETCHED), "target_crops": _two(*city, (1, 2), **STRETCHED)},
        },
        target=target,
        truth=truth,
        size=(512, 1024),
    )
    _translator(kit, translator, row, {"source_crops": _two(low, high, (1, 1)), "target_crops": _two(*city, (1, 1))}, perceptual)
    _rows(kit, row)
    return config


def _semi_cityscapes(split: str = "16", row: str = "diga"):
    """1/split of Cityscapes with labels, the rest without; HRNet-W48 with OCR. No translator: both are one domain."""
    config = _paper(f"diga_semi_{split}_{row}")
    config.weights, config.splits = "weights/hrnet_w48.safetensors", "data/splits"
    names = lambda kind: config.get_oneway_ref("splits") + f"/train_image_{kind}_1-{split}.txt"
    labelled = base.cityscapes(config, "train", names=names("labeled"))
    target, truth = (base.cityscapes(config, "train", names=names("unlabeled"), labelled=there) for there in (False, True))
    sizes = ((512, 1024), (1024, 2048))
    model = {"make": OCR, "num_classes": 19, "width": 48, "normalization": "caffe_128_rgb", "dtype": "float32", "classifier": "fresh"}
    knobs = {"second_view": "photometric", "view_share": 0.4, "distill_weight": 0.5}
    kit = Kit(
        config,
        shared={
            "model": {**model, "weights": config.get_oneway_ref("weights")},
            "optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "poly", "power": 1.0},
            "evaluate": {"cityscapes": {**base.cityscapes(config, "val"), **TWO_SCALES, "upsample": "logits", "score": "mIoU19"}},
        },
        data={"source": labelled, "crop": (512, 1024), "workers": 2, "source_crops": _two(*sizes, (1, 2))},
        warm={"method": knobs, "data": {"target_crops": _two(*sizes, (1, 2))}},
        train={"method": knobs, "data": {"target_crops": _two(*sizes, (1, 2), **STRETCHED)}},
        target=target,
        truth=truth,
        size=(512, 1024),
    )
    _rows(kit, row)
    return config


def _camvid_day_dusk(row: str = "diga"):
    """Day to dusk on photographs, ENet and its 16-channel feature; everything goes on from the network of the day alone."""
    config = base.run(f"diga_camvid_day_dusk_{row}", steps=400, batch_size=4)
    config.data, config.weights = "data/camvid", "weights/enet_cityscapes.safetensors"
    camvid = {"make": base.FOLDERS, "label_space": "camvid11"}
    train, val = ({**camvid, "file_list": base.under_data(config, f"{part}.txt")} for part in ("train", "val"))
    day, dusk = {**train, "include": ("0006R0", "0016E5"), "cache": True}, {**train, "include": ("0001TP",), "cache": True}
    scored = {"size": (360, 480), "upsample": "prediction"}
    model = {"make": base.ENET, "num_classes": 11, "layout": "torch7", "dtype": "float32", "weights": config.get_oneway_ref("weights")}
    shared = {
        "model": model,
        "optimizer": {"name": "adam", "lr": 5e-4, "weight_decay": 2e-4, "schedule": "poly", "power": 0.9},
        "evaluate": {"dusk": {**dusk, "split": "train", **scored}, "day": {**val, "split": "val", **scored}},
    }
    return _small(config, shared, {"source": day, "crop": (256, 384)}, whole=(360, 480), target=dusk, row=row, steps=60)


def _quickstart():
    """The same on the embedded street scenes of configs/quickstart.py."""
    config = base.run("diga_quickstart", steps=250, batch_size=8)
    scenes = {"make": base.STREET_SCENES, "size": (96, 192), "length": 2000, "split": "train"}
    held_out = {**scenes, "length": 64, "split": "val"}
    shared = {
        "model": {"make": base.ENET, "num_classes": 19, "layout": "pytorch", "dtype": "float32"},
        "optimizer": {"name": "adam", "lr": 2e-3, "weight_decay": 2e-4, "schedule": "poly", "power": 0.9},
        "evaluate": {"dusk": {**held_out, "look": "dusk"}, "day": {**held_out, "look": "day"}},
    }
    dusk = {**scenes, "look": "dusk", "length": 400}
    return _small(
        config, shared, {"source": {**scenes, "look": "day"}, "crop": (64, 128)}, whole=(96, 192), target=dusk, row="diga", steps=80
    )


def _small(config: Any, shared: dict, data: dict, *, whole: tuple[int, int], target: dict, row: str, steps: int):
    """Day alone, that with dusk's statistics (AdaBN), domain generalisation, warm-up, labels and centroids of it with dusk's statistics,
    self-training from there, and its network with statistics of whole dusk images. Labels by consensus and by a threshold are scored.
    """
    unlabelled = {**target, "labelled": False}
    slower = lambda share: {**shared["optimizer"], "lr": shared["optimizer"]["lr"] * share}
    # 60 steps need a teacher with a shorter memory than 80,000, and centroids that move as far
    common = {"ema_decay": 0.99, "predicts": "teacher"}
    kit = Kit(
        config,
        shared={**shared, "optimizer": slower(0.2)},
        data=data,
        warm={"method": common, "data": {}, "steps": steps, "start_from": "source_only"},
        train={
            "method": {**common, "statistics": "target", "centroid_momentum": 0.01},
            "data": {},
            "steps": steps,
            "optimizer": slower(0.4),
        },
        target=unlabelled,
        truth=target,
    )
    adabn = {"method": {"make": base.ADABN}, "steps": 8, "batch_size": 8}
    labels = {"scales": (1.0,), "batch_size": 8}  # at half of these sizes ENet knows less than it adds
    images = {**shared, "data": {**data, "target": unlabelled, "crop": whole, "flip": False}}
    warm, train = _changes(row)
    base.add_stage(config, "source_only", method=base.source_only(), **shared, data=data)
    base.add_stage(config, "adabn", **images, **adabn, start_from="source_only")
    if row in ("diga", "dg"):
        _warmup(kit, "dg", method=_changes("dg")[0])
    if row == "dg":
        return config
    _warmup(kit, "warmup", method=warm)
    base.add_stage(config, "warmup_adabn", **images, **adabn, start_from="warmup")
    if row == "threshold":
        _selftrain(kit, "selftrain", start="warmup_adabn", labels="", centroids="", method=train)
    else:
        _labels(kit, "pseudo", "warmup_adabn", **labels)
        base.add_centroids(config, "centroids", network="warmup_adabn", dataset=unlabelled, batch_size=8)
        if row == "diga":
            frozen = "{stage:centroids}/centroids.safetensors"
            _labels(kit, "consensus", "warmup_adabn", **labels, rule="consensus", centroids=frozen)
            _labels(kit, "threshold", "warmup_adabn", **labels, rule="code", share=1.0, cap=0.9)
        _selftrain(kit, "selftrain", start="warmup_adabn", labels="pseudo", centroids="centroids", method=train)
    base.add_stage(config, "selftrain_adabn", **images, **adabn, start_from="selftrain")
    return config


def _parse(arg: str) -> tuple[str, dict[str, str]]:
    where, *pairs = arg.split(",")
    options = dict(pair.partition("=")[::2] for pair in pairs)
    if where not in TAKES:
        raise base.unknown(where, tuple(name + "".join(f"[,{key}=...]" for key in keys) for name, keys in TAKES.items()))
    for name, value in options.items():
        if name not in TAKES[where] or value not in OPTIONS[name]:
            raise base.unknown(f"{name}={value}", tuple(f"{key}={choice}" for key in TAKES[where] for choice in OPTIONS[key]))
    return where, options
