"""CLOUDS (Benigmim et al., CVPR 2024) at its code's settings: prompts, images, warm-up on the source, joint training with SAM's labels.

`:gta`, `:synthia` (scored on Cityscapes, BDD100K and Mapillary) or `:cityscapes` (on ACDC by condition), then with commas

    net=clip_convnext_large (default) | clip_rn50 | clip_rn101 | mit_b5     under a Mask2Former; MiT-B5 is trained (no released code)
    training=frozen (default) | trainable     trainable: the backbone learns at a tenth of the rate
    sam=mobile (default) | vit_b | vit_l | vit_h | efficient_ti | efficient_s | off
    images=on (default) | off                 off: the warm-up alone
    ema=released (default) | every_step       every 100 steps, or each
    second_pass=off (default) | on            SAM's own mask goes back in as a prompt
    head=linear (default) | pooled | text     text: classes are words (fc-clip's of Cityscapes, `classes`, in the prompts of `templates`)
    ensemble=off (default) | on               answers join the head's classes with those of the frozen CLIP, in words, inside of each mask
    scored=label (default) | resized          resized: as released, labels of BDD100K, Mapillary and ACDC at the size of the prediction

`:quickstart` on the embedded scenes and `:camvid[,sam=mobile]` on photographs draw a small network and train all of it on two CPU cores.
Generated images come from a diffusion model; in their place the quickstart reads unlabelled scenes at dusk, and CamVid its day images in
another look (`stylized`, what `segjax stylize` leaves): dusk is scored there and never seen.

`weights` is the backbone (`segjax convert --input=FILE --layout=clip_openai_vision --prefix=backbone`), `segmenter` SAM's file, `llm` a
Llama and `sd` a Stable Diffusion 2 directory; for words alone, `clip` is the backbone's whole CLIP and `tokenizer` a folder; `data` as in
docs/data.md. Batch 8: six source and two generated images, the share of 5,000 generated images in the released lists (repeated 2.0, 0.7
and 0.2 times); the joint stage reads the first `prefix` of them (default: all). The last network counts.
"""

from collections.abc import Mapping
from typing import Any

import base
import uda
from ml_collections import config_dict

MASK2FORMER = "segjax.nets.mask2former:mask2former"
WARMUP, CLOUDS = "segjax.methods.clouds_warmup:make", "segjax.methods.clouds:make"
GENERATED = "segjax.data.readers.generated:Generated"
BDD100K, MAPILLARY = "segjax.data.readers.bdd100k:BDD100K", "segjax.data.readers.mapillary:Mapillary"
PLACES, SMALL = ("gta", "synthia", "cityscapes"), ("quickstart", "camvid")
RN = {"backbone": "clip_resnet", "normalization": "clip"}
NETS = {
    "clip_convnext_large": {
        **{"backbone": "clip_convnext", "normalization": "clip"},
        **{"backbone_embed_dim": 768, "backbone_image_size": 320, "backbone_head_width": 1536},
    },
    "clip_rn50": {**RN, "backbone_embed_dim": 1024},
    "clip_rn101": {**RN, "backbone_embed_dim": 512, "backbone_layers": (3, 4, 23, 3)},
    "mit_b5": {
        "backbone": "mit",
        "backbone_dims": (64, 128, 320, 512),
        "backbone_depths": (3, 6, 40, 3),
        "backbone_num_heads": (1, 2, 5, 8),
    },
}
CLIPS = {
    "clip_convnext_large": ("CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup", ""),
    "clip_rn50": ("RN50.pt", "clip-vit-base-patch32"),
    "clip_rn101": ("RN101.pt", "clip-vit-base-patch32"),
}
NORMS = {"clip_convnext": "(norm|stem_1|downsample_0)", "clip_resnet": "bn", "mit": "norm", "resnet": "bn"}
SAM, EFFICIENT = "segjax.nets.sam:Sam", "segjax.nets.efficient_sam:EfficientSam"
SAMS = {
    "mobile": ("mobile_sam.pt", {"make": "segjax.nets.mobile_sam:MobileSam"}),
    "vit_b": ("sam_vit_b_01ec64.pth", {"make": SAM}),
    "vit_l": (
        "sam_vit_l_0b3195.pth",
        {"make": SAM, "embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096, "global_blocks": (5, 11, 17, 23)},
    ),
    "vit_h": (
        "sam_vit_h_4b8939.pth",
        {"make": SAM, "embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_dim": 5120, "global_blocks": (7, 15, 23, 31)},
    ),
    "efficient_ti": ("efficient_sam_vitt.pt", {"make": EFFICIENT}),
    "efficient_s": ("efficient_sam_vits.pt", {"make": EFFICIENT, "embed_dim": 384, "num_heads": 6, "mlp_dim": 1536}),
}
OPTIONS = {
    "net": tuple(NETS),
    "training": ("frozen", "trainable"),
    "sam": (*SAMS, "off"),
    "images": ("on", "off"),
    "ema": ("released", "every_step"),
    "second_pass": ("off", "on"),
    "head": ("linear", "pooled", "text"),
    "ensemble": ("off", "on"),
    "scored": ("label", "resized"),
}


def get_config(arg="gta"):
    place, options = uda.parse(arg, (*PLACES, *SMALL), OPTIONS)
    if place in SMALL:
        if unknown := set(options) - ({"sam"} if place == "camvid" else set()):
            raise base.unknown(f"{place},{unknown.pop()}", ("quickstart", "camvid[,sam=...]"))
        return (_camvid if place == "camvid" else _quickstart)(options.get("sam", "off"))
    net, sam, scored = options.get("net", "clip_convnext_large"), options.get("sam", "mobile"), options.get("scored", "label")
    trainable = options.get("training", "trainable" if net == "mit_b5" else "frozen") == "trainable"
    config = base.run(f"clouds_{place}_{net}", steps={"gta": 40_000, "synthia": 30_000, "cityscapes": 10_000}[place], batch_size=8)
    config.checkpoint_every = config.evaluate_every = {"gta": 4000, "synthia": 1500, "cityscapes": 500}[place]
    config.mesh.data = 1  # batch 8 and 6 + 2: 1 or 2 devices (released: 2)
    config.data, config.weights, config.dtype = "data", f"weights/{net}.safetensors", "float32"
    config.llm, config.sd, config.generated = "Llama-2-70b-chat-hf", "stable-diffusion-2", 5000
    config.prefix = config_dict.placeholder(int)
    model = {"make": MASK2FORMER, "num_classes": 19, **NETS[net], "frozen": not trainable, "dtype": config.get_oneway_ref("dtype")}
    model |= classifier(config, net, options.get("head", "linear"), options.get("ensemble", "off") == "on")
    model |= {"weights": config.get_oneway_ref("weights"), "classifier": "fresh"}  # the file has a backbone alone: the rest is drawn
    source = {"gta": base.gta5, "synthia": base.synthia}.get(place, lambda config, **k: base.cityscapes(config, "train", **k))
    data = {
        "source": source(config, resize=None),
        "source_crops": {"diagonal": True},
        "crop": (768, 768),
        "scale": (0.5, 2.0),
        "workers": 2,
    }
    shared = {"model": model, "optimizer": optimizer(place, model), "evaluate": scores(config, place, scored == "resized")}
    trains = {"backbone_trains": net == "mit_b5"}
    if images := options.get("images", "on") == "on":
        others = {"endpoint": "", "name": "", "templates": "", "file": "", "instruction": ""}  # what may stand in the model's place
        base.add_spec(config, "prompts", {"verb": "prompts", "model": config.get_oneway_ref("llm"), "count": 100, **others})
        prompts = "{stage:prompts}/prompts.jsonl"
        count = config.get_oneway_ref("generated")
        base.add_verb(config, "images", "generate", model=config.get_oneway_ref("sd"), prompts=prompts, count=count, sampler="euler")
    early = {"steps": 5000} if place == "cityscapes" else {}
    base.add_stage(config, "warmup", method=warmup(**trains), data=data, **shared, **early)
    if images:
        drawn = {"make": GENERATED, "root": "{stage:images}", "labelled": False, "label_space": "cityscapes19"}
        drawn["prefix"] = config.get_oneway_ref("prefix")
        data |= {"target": drawn, "target_crops": {"scale": (1.0, 1.0)}, "target_batch_size": 2}
        changes = {"ema_every": 1 if options.get("ema") == "every_step" else 100, "second_pass": options.get("second_pass") == "on"}
        frozen, segmenter = segmented(config, sam)
        method = joint(segmenter=segmenter, **trains, **changes)
        base.add_stage(config, "joint", method=method, data=data, start_from="warmup", frozen=frozen, batch_size=6, **shared)
    return config


def classifier(config: Any, net: str, head: str, ensemble: bool) -> dict[str, Any]:
    """What gives queries their classes, as settings of `mask2former`. Words are of the text tower of the backbone's own CLIP."""
    found: dict[str, Any] = {} if head == "linear" else {"class_head": head}
    if head != "text" and not ensemble:
        return found
    if net not in CLIPS:
        raise base.unknown(f"net={net} with words", tuple(f"net={name}" for name in CLIPS))
    config.clip, config.tokenizer = CLIPS[net]
    config.classes, config.templates = "cityscapes19_words", "vild"
    found |= {"embed_dim": NETS[net]["backbone_embed_dim"]}
    found |= {"words": {key: config.get_oneway_ref(key) for key in ("clip", "tokenizer", "classes", "templates")}}
    if ensemble:
        resnet = net != "clip_convnext_large"  # as released: an empty mask says nothing there
        found |= {"ensemble": True, "ensemble_alpha": 0.4, "ensemble_beta": 0.8, "ensemble_on_valid_mask": resnet, "seen": ()}
    return found


def warmup(**changes: Any) -> dict[str, Any]:
    """The method `clouds_warmup` with every knob that an override may reach."""
    return {"make": WARMUP, **_LOSSES, **changes}


def joint(**changes: Any) -> dict[str, Any]:
    """The method `clouds` with every knob that an override may reach."""
    knobs = {"segmenter": None, "min_area": 5000, "prompt_points": 5, "erode": False, "remove_overlaps": True, "second_pass": False}
    knobs |= {"places": None, "chunk": 4, "ema_decay": 0.999, "ema_every": 100, "averages": "head", "predicts": "student"}
    return {"make": CLOUDS, **_LOSSES, **knobs, "generated_jitter": _LOSSES["jitter"], **changes}


_LOSSES = {"weights": (2.0, 5.0, 5.0, 0.1), "points": 112 * 112, "ignored": "negative", "backbone_trains": False, "accumulate": 1}
_LOSSES |= {"jitter": (32 / 255, 0.5, 0.5, 0.1), "jitter_probability": 0.5}


def segmented(config: Any, sam: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(frozen, method.segmenter) of a kind of SAM."""
    if sam == "off":
        return {}, None
    file, module = SAMS[sam]
    config.segmenter = f"weights/{file}"
    return {"segmenter": config.get_oneway_ref("segmenter")}, {**module, "dtype": config.get_oneway_ref("dtype")}


def optimizer(place: str, model: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """AdamW; no decay on norms and embeddings. The joint stage begins anew."""
    words = (r"params/void_embedding",) if "words" in model else ()
    norms, rates = [*words, r"params/(pixel_decoder|decoder)/.*norm", r"params/decoder/(query_feat|query_embed|level_embed)"], ()
    if not model["frozen"]:
        norms, rates = [*norms, rf"params/backbone/.*{NORMS[model['backbone']]}"], ((r"params/backbone/", 0.1),)
    schedule = {"schedule": "poly", "power": 0.9} if place == "synthia" else {"schedule": "constant"}
    adamw = {"name": "adamw", "lr": 1e-4 if place == "cityscapes" else 1e-5, "betas": (0.9, 0.999), "weight_decay": 0.05, "clip_norm": 0.01}
    return {**adamw, "no_decay": tuple(norms), "multipliers": rates, **schedule, **changes}


def scores(config: Any, place: str, resized: bool) -> dict[str, Any]:
    """Whole images, the shorter edge at 1024: Cityscapes at its own size. resized: the label is taken to that size too."""
    how = {"resize" if resized else "size": 1024, "split": "val", "score": "mIoU19"}
    other = lambda make, folder, **k: {"make": make, "root": base.under_data(config, folder), "label_space": "cityscapes19", **how, **k}
    found = {"cityscapes": {**base.cityscapes(config, "val"), "score": "mIoU19"}}
    if place == "cityscapes":
        conditions = ("night", "rain", "snow", "fog")
        return {**{f"acdc_{name}": other(uda.ACDC, "acdc", condition=name) for name in conditions}, **found}
    return {**found, "bdd100k": other(BDD100K, "bdd100k"), "mapillary": other(MAPILLARY, "mapillary")}


def _quickstart(sam: str) -> Any:
    """Day with labels, dusk without, 19 classes."""
    config = base.run("clouds_quickstart", steps=300, batch_size=8)
    scenes = {"make": base.STREET_SCENES, "size": (96, 192), "length": 2000, "split": "train"}
    held_out = {**scenes, "length": 64, "split": "val"}
    data = {"source": {**scenes, "look": "day"}, "crop": (64, 128)}
    scored = {"dusk": {**held_out, "look": "dusk"}, "day": {**held_out, "look": "day"}}
    base.add_verb(config, "prompts", "prompts", templates="street", count=100)
    return _small(config, 19, data, {**scenes, "look": "dusk", "labelled": False}, scored, sam, points=1024)


def _camvid(sam: str) -> Any:
    """Day (0006R0, 0016E5) with labels and, stylized, without; dusk (0001TP) is scored alone. 11 classes."""
    config = base.run("clouds_camvid", steps=1000, batch_size=4)
    config.data, config.stylized = "data/camvid", "stylized/camvid"
    camvid = {"make": base.FOLDERS, "label_space": "camvid11"}
    train, val = ({**camvid, "file_list": base.under_data(config, f"{part}.txt")} for part in ("train", "val"))
    dusk, day = ({**train, "include": names, "cache": True} for names in (("0001TP",), ("0006R0", "0016E5")))
    drawn = {**camvid, "images": config.get_oneway_ref("stylized"), "include": day["include"], "cache": True, "labelled": False}
    data = {"source": day, "crop": (256, 384), "scale": (0.75, 1.5)}
    size = {"size": (360, 480), "upsample": "prediction"}
    scored = {"dusk": {**dusk, "split": "train", **size}, "day": {**val, "split": "val", **size}}
    return _small(config, 11, data, drawn, scored, sam, points=3136)


def _small(config: Any, classes: int, data: dict, unlabelled: dict, scored: dict, sam: str, points: int) -> Any:
    """Both stages over a small ResNet that learns whole, with BatchNorm by the batch; nothing is pretrained."""
    config.dtype = "float32"
    sizes = {"channels": 64, "mask_channels": 64, "decoder_channels": 64, "heads": 4, "encoder_layers": 2, "encoder_hidden": 128}
    sizes |= {"decoder_layers": 3, "decoder_hidden": 128, "queries": 40, "backbone_depth": (1, 1, 1, 1), "backbone_width": 16}
    model = {"make": MASK2FORMER, "num_classes": classes, "backbone": "resnet", "frozen": False, **sizes}
    model |= {"dtype": config.get_oneway_ref("dtype"), "weights": "", "classifier": "fresh"}
    learns = optimizer("gta", model, lr=1e-3, schedule="poly", power=0.9, multipliers=())
    shared, common = {"model": model, "evaluate": scored}, {"points": points, "backbone_trains": True}
    base.add_stage(config, "warmup", method=warmup(**common), data=data, optimizer=learns, **shared)
    frozen, segmenter = segmented(config, sam)
    method = joint(segmenter=segmenter, min_area=1000, ema_every=1, averages="network", **common)
    data = {**data, "target": unlabelled, "target_crops": {"scale": (1.0, 1.0)}}
    gentle = {**learns, "lr": 2e-4}
    base.add_stage(config, "joint", method=method, data=data, optimizer=gentle, start_from="warmup", frozen=frozen, **shared)
    return config
