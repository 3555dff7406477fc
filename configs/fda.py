"""FDA (Yang and Soatto, CVPR 2020) at the paper's settings: DeepLabV2-R101 from GTA5 or SYNTHIA to Cityscapes, one beta a run.

The paper averages three networks (beta 0.01, 0.05, 0.09): run three times with `--config.stages.fda.method.betas=(0.05,)`.
SGD 0.9, 2.5e-4 (head x10), decay 5e-4, poly 0.9 over 150,000 steps stopped at 100,000, batch 1, crops 1024x512, no flip.
`data` holds gta5, RAND_CITYSCAPES and cityscapes as their archives unpack (docs/data.md); `weights` is the converted ImageNet
initialisation. Images are resized bilinear with antialias (the code: bicubic). `:camvid_day_dusk` is that config.
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
    source = base.gta5(config) if arg == "gta_cityscapes" else base.synthia(config)
    target = base.cityscapes(config, "train", labelled=False, resize=(512, 1024))
    scored = {"size": (576, 1344), "upsample": "logits", "score": "mIoU19" if arg == "gta_cityscapes" else "mIoU16"}
    shared = {
        "model": {
            "make": base.DEEPLABV2,
            "num_classes": 19,
            "backbone": "resnet101",
            "branches": 4,
            "normalization": "caffe",
            "dtype": "float32",
            "remat": "wide",
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
        "evaluate": {"cityscapes": {**base.cityscapes(config, "val"), **scored}},
    }
    # The released code normalises the entropy by 2.9444 (ln 19) and its README starts it at step 0.
    base.add_stage(config, "fda", method=base.fda(entropy_normalizer=2.9444), **shared)
    return config
