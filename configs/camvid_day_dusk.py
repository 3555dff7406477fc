"""Real photographs: CamVid's labelled day (0006R0, 0016E5) to its unlabelled dusk (0001TP), ENet. Dusk labels serve scoring alone.

Stages: day alone; that network with dusk's BatchNorm statistics (AdaBN, the baseline to beat); that network trained on with FDA and
self-training towards dusk; the result with dusk's statistics.

Default: from an ENet trained on Cityscapes (`segjax convert` of the Torch7 file), its classifier carried over to CamVid's 11 classes.
`:from_scratch` draws every weight. `data` holds the SegNet split: train.txt and val.txt with "image label" lines.
The Cityscapes network as it is, at the size of its published figures: `segjax evaluate --config=configs/camvid_day_dusk.py
--config.evaluate_size="(512,1024)" --weights=weights/enet_cityscapes.safetensors --workdir=DIR`.
"""

import base

VARIANTS = ("from_enet", "from_scratch")


def get_config(arg="from_enet"):
    if arg not in VARIANTS:
        raise base.unknown(arg, VARIANTS)
    scratch = arg == "from_scratch"
    config = base.run(f"camvid_day_dusk_{arg}", steps=3000 if scratch else 1000, batch_size=4)
    config.data = "data/camvid"
    config.evaluate_size = (360, 480)
    train_list, val_list = (config.get_oneway_ref("data") + f"/{part}.txt" for part in ("train", "val"))
    config.weights = "" if scratch else "weights/enet_cityscapes.safetensors"
    camvid = {"make": base.FOLDERS, "label_space": "camvid11"}
    train = {**camvid, "file_list": train_list}
    day, dusk = ("0006R0", "0016E5"), ("0001TP",)
    scored = {"size": config.get_oneway_ref("evaluate_size"), "upsample": "prediction"}
    shared = {
        "model": {
            "make": base.ENET,
            "num_classes": 11,
            "layout": "pytorch" if scratch else "torch7",
            "dtype": "float32",
            "weights": config.get_oneway_ref("weights"),
        },
        "optimizer": {"name": "adam", "lr": 5e-4, "weight_decay": 2e-4, "schedule": "poly", "power": 0.9},
        "data": {
            "source": {**train, "include": day, "cache": True},
            "target": {**train, "include": dusk, "labelled": False, "cache": True},
            "crop": (256, 384),
        },
        "evaluate": {
            "dusk": {**train, "include": dusk, "split": "train", **scored},
            "day": {**camvid, "file_list": val_list, "split": "val", **scored},
        },
    }
    base.add_stage(config, "source_only", method=base.source_only(), **shared)
    whole = {**shared, "data": {**shared["data"], "crop": (360, 480), "flip": False}}
    base.add_stage(config, "adabn", method={"make": base.ADABN}, start_from="source_only", **whole, steps=8, batch_size=8)
    # Chosen without dusk's labels: highest mIoU on day val recoloured to dusk's colour statistics (README, "What helped").
    fda = base.fda(stylized_share=0.5, jitter=0.2, ema_decay=0.99, self_training_weight=1.0, self_training_threshold=0.7)
    gentle = {**shared, "optimizer": {**shared["optimizer"], "lr": 2e-4}}
    base.add_stage(config, "fda", method=fda, start_from="source_only", **gentle, steps=400)
    base.add_stage(config, "fda_adabn", method={"make": base.ADABN}, start_from="fda", **whole, steps=8, batch_size=8)
    return config
