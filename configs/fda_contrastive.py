"""The two-model system of Singh and Gerem (zgerem/UDA): model 1 makes pseudo-labels, model 2 learns with a supervised contrastive loss.

`:gta_cityscapes[,net=enet|vgg16|r101][,row=ROW]` at the seed's settings, `:camvid_day_dusk` and `:quickstart` to run on two CPU cores;
ROW is a row of its tables (`ROWS` below; `all` of them in one run):

    pseudo_labels        model 1 in colour on target images as they are (Trg in Trg) and in the source's look (Trg in Src), and in grey
    fda_ent0 fda_01 ...  one FDA network: beta .01 without entropy (its "CE on Src"), .01, .05, .09
    fda_mbt              three of them averaged, their pseudo-labels (the code's 66 % rule), a self-supervised round, averaged again
    ce_pl cl_pl cl_gt    model 2 with cross-entropy or contrastive loss of pseudo-labels, and of the truth (the upper bound)
    rounds               cl_pl, pseudo-labels from it, cl_pl again

Model 1: DeepLabV2-R101 on greyscale source images, cross-entropy + 0.005 robust entropy, no stylization; its pseudo-labels are the argmax,
without threshold, of target images in the look of the source (beta .01). Model 2: beta .09 (the released options; a printed log has .01),
tau .07, 2,000 pixels an image, class weights up to 1,000 : 1, contrastive and entropy terms from step 50,000 of 60,000. What the sources
leave open: ENet's optimizer (here that of its PyTorch release, Adam 5e-4), VGG16 (theirs is FCN-8s, here DeepLabV2; Adam 1e-5 as FDA's).
`weights` is the converted initialisation of model 2, `weights1` that of model 1, both below `--config`; `data` as in configs/fda.py.
"""

import dataclasses
from typing import Any

import base

ROWS = {
    "pseudo_labels": ("model1_colour", "trg_in_trg", "trg_in_src", "model1", "pseudo"),
    "fda_ent0": ("fda_ent0",),
    "fda_01": ("fda_01",),
    "fda_05": ("fda_05",),
    "fda_09": ("fda_09",),
    "fda_mbt": ("fda_01", "fda_05", "fda_09", "mbt", "sst_01", "sst_05", "sst_09", "mbt_sst"),
    "ce_pl": ("model1", "pseudo", "ce_pl"),
    "cl_pl": ("model1", "pseudo", "cl_pl"),
    "cl_gt": ("cl_gt",),
    "rounds": ("model1", "pseudo", "cl_pl", "pseudo_2", "cl_pl_2"),
}
STAGES = tuple(dict.fromkeys(stage for row in ROWS.values() for stage in row))
NETS = ("enet", "vgg16", "r101")
CLASS_WEIGHTS = tuple(w / 500 for w in (1, 1, 1, 1, 100, 1, 100, 100, 1, 1, 1, 100, 100, 1, 1, 100, 500, 500, 1000))
PSEUDO = "segjax.data.pseudo:PseudoLabelled"


FDA_BETAS = {"01": 0.01, "05": 0.05, "09": 0.09}


@dataclasses.dataclass
class Kit:
    """What the stages of one place have in common. first, second: model, optimizer, data and evaluate of model 1 and of everything else.

    model1, fda, model2: changes of the methods' knobs. labels: of a pseudo-label stage. truth: the labelled target. steps: of model 1,
    of an FDA network and of model 2.
    """

    config: Any
    first: dict
    second: dict
    model1: dict
    fda: dict
    model2: dict
    labels: dict
    truth: dict
    steps: tuple[int, int, int]


def get_config(arg="gta_cityscapes"):
    where, options = _parse(arg)
    if where == "gta_cityscapes":
        return _gta_cityscapes(options.get("net", "r101"), options.get("row", "cl_pl"))
    return _camvid_day_dusk() if where == "camvid_day_dusk" else _quickstart()


def _add(kit: Kit, stage: str, **changes) -> None:
    """Appends one stage of `STAGES` to the run."""
    config, (steps1, steps_fda, steps2) = kit.config, kit.steps
    if stage in ("model1", "model1_colour"):
        method = base.fda(**{"betas": (), "greyscale": stage == "model1", **kit.model1})
        base.add_stage(config, stage, method=method, **kit.first, steps=steps1, **changes)
    elif stage == "fda_ent0":
        method = base.fda(**{**kit.fda, "betas": (0.01,), "entropy_weight": 0.0})
        base.add_stage(config, stage, method=method, **kit.second, steps=steps_fda, **changes)
    elif stage.startswith("fda_"):
        method = base.fda(**{**kit.fda, "betas": (FDA_BETAS[stage[4:]],)})
        base.add_stage(config, stage, method=method, **kit.second, steps=steps_fda, **changes)
    elif stage.startswith("sst_"):
        method = base.fda_contrastive(
            **kit.fda, beta=FDA_BETAS[stage[4:]], contrast_weight=0.0, target_ce_weight=1.0, target_ce_view="target"
        )
        base.add_stage(config, stage, method=method, **_labelled(kit, "mbt"), steps=steps_fda, **changes)
    elif stage == "ce_pl":
        method = base.fda_contrastive(**{**kit.model2, "contrast_weight": 0.0, "target_ce_weight": 1.0})
        base.add_stage(config, stage, method=method, **_labelled(kit, "pseudo"), steps=steps2, **changes)
    elif stage in ("cl_pl", "cl_gt", "cl_pl_2"):
        labels = {"cl_pl": "pseudo", "cl_gt": "", "cl_pl_2": "pseudo_2"}[stage]
        base.add_stage(config, stage, method=base.fda_contrastive(**kit.model2), **_labelled(kit, labels), steps=steps2, **changes)
    else:
        networks = {"trg_in_trg": ("model1_colour",), "trg_in_src": ("model1_colour",), "pseudo": ("model1",), "pseudo_2": ("cl_pl",)}
        mbt = {"mbt": ("fda_01", "fda_05", "fda_09"), "mbt_sst": ("sst_01", "sst_05", "sst_09")}
        own = {"networks": {**networks, **mbt}[stage], "rule": "code" if stage == "mbt" else "none", "style": {}}
        own |= {"style": kit.labels.get("style", {})} if stage in ("trg_in_src", "pseudo") else {}
        base.add_labels(config, stage, **{**kit.labels, **own, **changes})


def _labelled(kit: Kit, labels: str) -> dict:
    """The second model's parts with target labels: those of an earlier stage, or the truth."""
    target = {"make": PSEUDO, "dataset": kit.second["data"]["target"], "labels": f"{{stage:{labels}}}"} if labels else kit.truth
    return {**kit.second, "data": {**kit.second["data"], "target": target, "target_labels": True}}


def _gta_cityscapes(net: str, row: str):
    config = base.run(f"fda_contrastive_{net}_{row}", steps=60_000, batch_size=1)
    config.checkpoint_every, config.evaluate_every, config.log_every = 1000, 10_000, 100
    config.mesh.data = 1  # batch 1
    config.data, config.weights1 = "data", "weights/deeplab_init.safetensors"
    config.weights = {"enet": "", "vgg16": "weights/vgg16_imagenet.safetensors", "r101": "weights/deeplab_init.safetensors"}[net]
    caffe = {"make": base.DEEPLABV2, "num_classes": 19, "normalization": "caffe", "dtype": "float32", "classifier": "fresh"}
    models = {
        "enet": {"make": base.ENET, "num_classes": 19, "layout": "pytorch", "embedding": 64, "dtype": "float32"},
        "vgg16": {**caffe, "backbone": "vgg16"},
        "r101": {**caffe, "backbone": "resnet101", "remat": "wide"},
    }
    poly = {"schedule": "poly", "power": 0.9}
    sgd = {"name": "sgd", "lr": 2.5e-4, "momentum": 0.9, "weight_decay": 5e-4, "multipliers": (("classifier", 10.0),), **poly}
    optimizers = {
        "enet": {"name": "adam", "lr": 5e-4, "weight_decay": 2e-4, **poly},
        "vgg16": {"name": "adam", "lr": 1e-5, "betas": (0.9, 0.99), "weight_decay": 5e-4, **poly},
        "r101": sgd,
    }
    source, target = base.gta5(config), base.cityscapes(config, "train", labelled=False, resize=(512, 1024))
    truth = base.cityscapes(config, "train", resize=(512, 1024))
    val = {**base.cityscapes(config, "val"), "size": (576, 1344), "upsample": "logits", "score": "mIoU19"}
    data = {"source": source, "target": target, "crop": (512, 1024), "flip": False, "workers": 2}
    shared = {"data": data, "evaluate": {"cityscapes": val}}
    entropy = {"entropy_normalizer": 2.9444}
    late = {"contrast_start": 50_000, "entropy_start": 50_000, "target_ce_start": 50_000}
    own = {"embedding": "features"} if net == "enet" else {"class_weights": CLASS_WEIGHTS}
    kit = Kit(
        config,
        first={**shared, "model": {**models["r101"], "weights": config.get_oneway_ref("weights1")}, "optimizer": sgd},
        second={**shared, "model": {**models[net], "weights": config.get_oneway_ref("weights")}, "optimizer": optimizers[net]},
        model1={**entropy, "class_weights": CLASS_WEIGHTS},
        fda=entropy,
        model2={**entropy, **late, **own},
        labels={"dataset": truth, "size": (576, 1344), "style": source, "beta": 0.01, "batch_size": 1},
        truth=truth,
        steps=(100_000, 100_000, 60_000),
    )
    for stage in STAGES if row == "all" else ROWS[row]:
        over_val = {"dataset": base.cityscapes(config, "val")} if stage == "mbt_sst" else {}  # FDA's result is an average on val
        _add(kit, stage, **over_val)
    return config


def _camvid_day_dusk():
    """Day to dusk on photographs, ENet: every target stage goes on from the network of the day alone."""
    config = base.run("fda_contrastive_camvid_day_dusk", steps=400, batch_size=4)
    config.data, config.weights = "data/camvid", "weights/enet_cityscapes.safetensors"
    camvid = {"make": base.FOLDERS, "label_space": "camvid11"}
    train, val = ({**camvid, "file_list": base.under_data(config, f"{part}.txt")} for part in ("train", "val"))
    day, dusk = {**train, "include": ("0006R0", "0016E5"), "cache": True}, {**train, "include": ("0001TP",), "cache": True}
    scored = {"size": (360, 480), "upsample": "prediction"}
    shared = {
        "model": {
            "make": base.ENET,
            "num_classes": 11,
            "layout": "torch7",
            "dtype": "float32",
            "weights": config.get_oneway_ref("weights"),
        },
        "optimizer": {"name": "adam", "lr": 5e-4, "weight_decay": 2e-4, "schedule": "poly", "power": 0.9},
        "data": {"source": day, "target": {**dusk, "labelled": False}, "crop": (256, 384)},
        "evaluate": {"dusk": {**dusk, "split": "train", **scored}, "day": {**val, "split": "val", **scored}},
    }
    return _small(config, shared, whole=(360, 480), truth=dusk, steps=120)


def _quickstart():
    """The same on the embedded street scenes of configs/quickstart.py."""
    config = base.run("fda_contrastive_quickstart", steps=250, batch_size=8)
    size = (96, 192)
    scenes = {"make": base.STREET_SCENES, "size": size, "length": 2000, "split": "train"}
    dusk, held_out = {**scenes, "look": "dusk"}, {**scenes, "length": 64, "split": "val"}
    shared = {
        "model": {"make": base.ENET, "num_classes": 19, "layout": "pytorch", "dtype": "float32"},
        "optimizer": {"name": "adam", "lr": 2e-3, "weight_decay": 2e-4, "schedule": "poly", "power": 0.9},
        "data": {"source": {**scenes, "look": "day"}, "target": {**dusk, "labelled": False}, "crop": (64, 128)},
        "evaluate": {"dusk": {**held_out, "look": "dusk"}, "day": {**held_out, "look": "day"}},
    }
    return _small(config, shared, whole=size, truth=dusk, steps=100)


def _small(config, shared: dict, *, whole: tuple[int, int], truth: dict, steps: int):
    """Source alone, AdaBN, FDA, pseudo-labels of the last one, and model 2 with each of its losses, all from the source's network."""
    base.add_stage(config, "source_only", method=base.source_only(), **shared)
    images = {**shared, "data": {**shared["data"], "crop": whole, "flip": False}}
    adabn = {"method": {"make": base.ADABN}, "steps": 8, "batch_size": 8}
    base.add_stage(config, "adabn", **images, **adabn, start_from="source_only")
    common = {"statistics": "target", "jitter": 0.2, "ema_decay": 0.98}
    gentle = {**shared, "optimizer": {**shared["optimizer"], "lr": shared["optimizer"]["lr"] * 0.2}}
    kit = Kit(
        config,
        first=gentle,
        second=gentle,
        model1=common,
        fda=common,
        model2={"beta": 0.01, "contrast_weight": 0.2, "samples": 1000, "target_ce_view": "target", **common},
        labels={"dataset": truth, "batch_size": 8},
        truth=truth,
        steps=(steps, steps, steps),
    )
    _add(kit, "fda_01", start_from="source_only")
    _add(kit, "pseudo", networks=("fda_01",), style={})
    for stage in ("ce_pl", "cl_pl", "cl_gt"):
        _add(kit, stage, start_from="source_only")
    return config


def _parse(arg: str) -> tuple[str, dict[str, str]]:
    where, *pairs = arg.split(",")
    options = dict(pair.partition("=")[::2] for pair in pairs)
    known = {"net": NETS, "row": (*ROWS, "all")} if where == "gta_cityscapes" else {}
    if where not in ("gta_cityscapes", "camvid_day_dusk", "quickstart"):
        raise base.unknown(where, ("gta_cityscapes[,net=NET][,row=ROW]", "camvid_day_dusk", "quickstart"))
    for name, value in options.items():
        if value not in known.get(name, ()):
            raise base.unknown(f"{name}={value}", tuple(f"{key}={choice}" for key, choices in known.items() for choice in choices))
    return where, options
