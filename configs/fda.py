"""FDA (Yang and Soatto, CVPR 2020) at the paper's settings: DeepLabV2-R101 from GTA5 or SYNTHIA to Cityscapes, one beta a run.

The paper averages three networks (beta 0.01, 0.05, 0.09): run three times with `--config.stages.fda.method.betas=(0.05,)`.
SGD 0.9, 2.5e-4 (head x10), decay 5e-4, poly 0.9 over 150,000 steps stopped at 100,000, batch 1, crops 1024x512, no flip.
`data` holds gta/{images,labels}, synthia/{RGB,GT/LABELS} (8-bit SYNTHIA ids) and cityscapes/{leftImg8bit,gtFine}; `weights` is the
converted ImageNet initialisation. Images are resized bilinear with antialias (the code: bicubic). `:camvid_day_dusk` is that config.
"""

import base
import camvid_day_dusk

VARIANTS = ("gta_cityscapes", "synthia_cityscapes", "camvid_day_dusk")


def get_config(arg="gta_cityscapes"):
    if arg not in VARIANTS:
        raise base.unknown(arg, VARIANTS)
    if arg == "camvid_day_dusk":
        return camvid_day_dusk.get_config()
    config = base.run(f"fda_{arg}", steps=100_000, batch_size=1)
    config.checkpoint_every, config.evaluate_every, config.log_every = 2500, 10_000, 100
    config.mesh.data = 1  # batch 1
    config.weights = "weights/deeplab_init.safetensors"
    config.data = "data"
    source, cityscapes = _source(config, arg), {"make": base.FOLDERS, "encoding": "labelId"}
    target = {**cityscapes, "images": _under_data(config, "cityscapes/leftImg8bit/train"), "resize": (512, 1024)}
    val = {
        **cityscapes,
        "images": _under_data(config, "cityscapes/leftImg8bit/val"),
        "labels": _under_data(config, "cityscapes/gtFine/val"),
    }
    shared = {
        "model": {
            "make": base.DEEPLABV2,
            "num_classes": 19,
            "backbone": "resnet101",
            "branches": 4,
            "normalization": "caffe",
            "dtype": "float32",
            "weights": config.get_oneway_ref("weights"),
            "classifier": "fresh",
        },
        "optimizer": {
            "name": "sgd",
            "lr": 2.5e-4,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "multipliers": (("classifier", 10.0),),
            "schedule": "poly",
            "power": 0.9,
            "total_steps": 150_000,
        },
        "data": {"source": source, "target": target, "crop": (512, 1024), "flip": False, "workers": 2},
        "evaluate": {
            "cityscapes": {**val, "split": "val", "size": (576, 1344), "upsample": "logits", "score": _headline(arg)},
        },
    }
    # The released code normalises the entropy by 2.9444 (ln 19) and its README starts it at step 0.
    base.add_stage(config, "fda", method=base.fda(entropy_normalizer=2.9444), **shared)
    return config


def _source(config, arg: str) -> dict:
    """The labelled source at the paper's size."""
    if arg == "gta_cityscapes":
        broken = ("15188", "17705")  # pairs whose label belongs to another image
        kind, images, labels = {"encoding": "labelId", "resize": (720, 1280), "exclude": broken}, "gta/images", "gta/labels"
    else:
        kind, images, labels = {"encoding": "synthia", "resize": (760, 1280)}, "synthia/RGB", "synthia/GT/LABELS"
    paths = {"images": _under_data(config, images), "labels": _under_data(config, labels)}
    return {"make": base.FOLDERS, "label_space": "cityscapes19", **paths, **kind}


def _under_data(config, path: str):
    """A folder that moves with `--config.data`."""
    return config.get_oneway_ref("data") + f"/{path}"


def _headline(arg: str) -> str:
    return "mIoU19" if arg == "gta_cityscapes" else "mIoU16"
