"""The main job in a few minutes on two CPU cores: embedded street scenes by day (labelled) to the same streets at dusk (unlabelled), ENet.

Three stages: day alone; that network with dusk's BatchNorm statistics (AdaBN, the baseline to beat); that network trained on with FDA
towards dusk. Nothing is downloaded.
"""

import base


def get_config():
    config = base.run("quickstart", steps=250, batch_size=8)
    config.size, config.crop = (96, 192), (64, 128)
    size = config.get_oneway_ref("size")
    scenes = {"make": base.STREET_SCENES, "size": size, "length": 2000}
    day, dusk = {**scenes, "look": "day", "split": "train"}, {**scenes, "look": "dusk", "split": "train", "labelled": False}
    held_out = {**scenes, "length": 64, "split": "val"}
    adam = {"name": "adam", "lr": 2e-3, "weight_decay": 2e-4, "schedule": "poly", "power": 0.9}
    shared = {
        "model": {"make": base.ENET, "num_classes": 19, "layout": "pytorch", "dtype": "float32"},
        "evaluate": {"dusk": {**held_out, "look": "dusk"}, "day": {**held_out, "look": "day"}},
    }
    crops = {"source": day, "target": dusk, "crop": config.get_oneway_ref("crop")}
    whole = {**crops, "crop": size}
    base.add_stage(config, "source_only", method=base.source_only(), optimizer=adam, data=crops, **shared)
    adabn = {"method": {"make": base.ADABN}, "start_from": "source_only", "steps": 32}
    base.add_stage(config, "adabn", optimizer=adam, data=whole, **shared, **adabn)
    fda = {"method": base.fda(betas=(0.01, 0.05, 0.09)), "start_from": "source_only", "steps": 150}
    base.add_stage(config, "fda", optimizer={**adam, "lr": 1e-3}, data=crops, **shared, **fda)
    return config
