"""The main job in a few minutes on two CPU cores: embedded street scenes by day (labelled) to the same streets at dusk (unlabelled), ENet.

Three stages: day alone; its BatchNorm statistics replaced by dusk's (AdaBN, the baseline to beat); FDA towards dusk. Nothing is downloaded.
"""

import base


def get_config():
    config = base.run("quickstart", steps=300, batch_size=8)
    config.size = (96, 192)
    size = config.get_oneway_ref("size")
    scenes = {"make": base.STREET_SCENES, "size": size, "length": 2000}
    day, dusk = {**scenes, "look": "day", "split": "train"}, {**scenes, "look": "dusk", "split": "train", "labelled": False}
    held_out = {**scenes, "length": 64, "split": "val"}
    shared = {
        "model": {"make": base.ENET, "num_classes": 19, "layout": "pytorch", "dtype": "float32"},
        "optimizer": {"name": "adam", "lr": 2e-3, "weight_decay": 2e-4, "schedule": "poly", "power": 0.9},
        "data": {"source": day, "target": dusk, "crop": size},
        "evaluate": {"dusk": {**held_out, "look": "dusk"}, "day": {**held_out, "look": "day"}},
    }
    base.add_stage(config, "source_only", method={"make": base.SOURCE_ONLY, "jitter": 0.0, "ema_decay": 0.0}, **shared)
    base.add_stage(config, "adabn", method={"make": base.ADABN}, start_from="source_only", **shared, steps=32)
    fda = {"make": base.FDA, "betas": (0.01, 0.05, 0.09), "entropy_weight": 0.005, "entropy_start": 150, "jitter": 0.0, "ema_decay": 0.0}
    base.add_stage(config, "fda", method=fda, **shared)
    return config
