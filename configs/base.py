"""What the configs share. A config is plain values; `{"make": "module:name", ...}` names what segjax/verbs/build.py builds of them."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

SOURCE_ONLY, FDA, ADABN = "segjax.methods.source_only:make", "segjax.methods.fda:make", "segjax.methods.adabn:make"
ENET, DEEPLABV2 = "segjax.nets.enet:ENet", "segjax.nets.deeplab:DeepLabV2"
FDA_CONTRASTIVE = "segjax.methods.fda_contrastive:make"
DIGA_WARMUP, DIGA_SELFTRAIN = "segjax.methods.diga_warmup:make", "segjax.methods.diga_selftrain:make"
FOLDERS, STREET_SCENES = "segjax.data.folders:FolderDataset", "segjax.data.procedural:StreetScenes"
GTA5, SYNTHIA = "segjax.data.readers.gta5:GTA5", "segjax.data.readers.synthia:Synthia"
CITYSCAPES = "segjax.data.readers.cityscapes:Cityscapes"


def source_only(**changes: Any) -> dict[str, Any]:
    """The method `source_only` with every knob that an override may reach."""
    return {"make": SOURCE_ONLY, "jitter": 0.0, "ema_decay": 0.0, "accumulate": 1, **changes}


def fda(**changes: Any) -> dict[str, Any]:
    """The method `fda` with every knob that an override may reach; the paper's values are in configs/fda.py."""
    knobs = {"betas": (0.01,), "variant": "centred", "stylized_share": 1.0, "statistics": "joint", "jitter": 0.0, "ema_decay": 0.0}
    knobs |= {"accumulate": 1, "greyscale": False}
    knobs |= {"entropy_weight": 0.005, "entropy_eta": 2.0, "entropy_start": 0}
    knobs |= {"self_training_weight": 0.0, "self_training_start": 0, "self_training_threshold": 0.9}
    return {"make": FDA, **knobs, **changes}


def fda_contrastive(**changes: Any) -> dict[str, Any]:
    """The method `fda_contrastive` with every knob that an override may reach."""
    knobs = {"beta": 0.09, "variant": "centred", "statistics": "joint", "jitter": 0.0, "ema_decay": 0.0, "accumulate": 1}
    knobs |= {"entropy_weight": 0.005, "entropy_eta": 2.0, "entropy_start": 0}
    knobs |= {"contrast_weight": 1.0, "contrast_start": 0, "form": "negatives", "temperature": 0.07, "embedding": "logits"}
    knobs |= {"projection": 0, "samples": 2000, "sampling": "uniform", "keys": "image", "memory": 0}
    knobs |= {"target_ce_weight": 0.0, "target_ce_view": "stylized", "target_ce_start": 0}
    return {"make": FDA_CONTRASTIVE, **knobs, **changes}


def diga_warmup(**changes: Any) -> dict[str, Any]:
    """The method `diga_warmup` with every knob that an override may reach."""
    return {"make": DIGA_WARMUP, **_DIGA, "view_share": 0.4, "distill_weight": 0.5, "faithful_statistics": False, **changes}


def diga_selftrain(**changes: Any) -> dict[str, Any]:
    """The method `diga_selftrain` with every knob that an override may reach."""
    knobs = {"selection": "consensus", "threshold": 0.9, "centroid_momentum": 1e-4, "mix_weight": 1.0, "statistics": "joint"}
    return {"make": DIGA_SELFTRAIN, **_DIGA, "view_share": 0.3, "distill_weight": 0.25, **knobs, **changes}


_DIGA = {"second_view": "crossdomix", "translator": "fda", "beta": 0.01, "variant": "centred", "chain": "gta5"}
_DIGA |= {"reverse_weight": 0.5, "mean_over": "all", "hard": (), "ema_decay": 0.999, "predicts": "student", "accumulate": 1}
_DIGA |= {"faithful_view": False, "faithful_teacher": False}


def gta5(config: ConfigDict, **changes: Any) -> dict[str, Any]:
    """GTA5 in `gta5` below `config.data` at the size of most papers; `broken` keeps the two pairs that do not fit."""
    root = under_data(config, "gta5")
    return {"make": GTA5, "root": root, "split": "all", "broken": False, "label_space": "cityscapes19", "resize": (720, 1280), **changes}


def synthia(config: ConfigDict, **changes: Any) -> dict[str, Any]:
    """SYNTHIA-RAND-CITYSCAPES in `RAND_CITYSCAPES` below `config.data`, at its own size; `derived` reads the 8-bit copies of its labels."""
    root = under_data(config, "RAND_CITYSCAPES")
    return {"make": SYNTHIA, "root": root, "derived": False, "label_space": "cityscapes19", "resize": (760, 1280), **changes}


def cityscapes(config: ConfigDict, split: str, **changes: Any) -> dict[str, Any]:
    """Cityscapes in `cityscapes` below `config.data`, fine labels; a target to adapt to adds `labelled=False`."""
    return {"make": CITYSCAPES, "root": under_data(config, "cityscapes"), "split": split, "label_space": "cityscapes19", **changes}


def under_data(config: ConfigDict, path: str) -> FieldReference:
    """A path below `config.data` that moves with `--config.data`."""
    return config.get_oneway_ref("data") + f"/{path}"


def run(name: str, *, steps: int, batch_size: int) -> ConfigDict:
    """An empty run. `--config.seed`, `steps`, `batch_size`, `checkpoint_every` and `mesh` hold for every stage that follows them."""
    return ConfigDict(
        {
            "name": name,
            "seed": 0,
            "order": (),
            "steps": steps,
            "batch_size": batch_size,
            "log_every": 20,
            "checkpoint_every": 250,
            "evaluate_every": 0,
            "mesh": {"data": -1, "fsdp": 1},
            "stages": {},
        }
    )


def add_stage(
    config: ConfigDict,
    name: str,
    *,
    method: Mapping[str, Any],
    model: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    data: Mapping[str, Any],
    evaluate: Mapping[str, Any],
    start_from: str = "",
    frozen: Mapping[str, str] | None = None,
    **changes: Any,
) -> ConfigDict:
    """Appends a stage to a run. What `changes` leaves out (steps, batch_size, ...) follows the run's own value, overridden or not."""
    parts = {
        "method": method,
        "model": {"weights": "", "weights_space": "", "classifier": "map", **model},
        "optimizer": optimizer,
        "data": {"scale": (1.0, 1.0), "flip": True, "workers": 0, "broken": "raise", "broken_share": 0.01, **data},
        "evaluate": evaluate,
        "start_from": start_from,
        "frozen": frozen or {},
        "sharding": (),
        "keep": 3,
        "mesh": {key: config.mesh.get_oneway_ref(key) for key in ("data", "fsdp")},
    }
    stage = ConfigDict(_own_links(parts))
    for key in ("steps", "batch_size", "log_every", "checkpoint_every", "evaluate_every"):
        stage[key] = changes[key] if key in changes else config.get_oneway_ref(key)
    config.stages[name] = stage
    config.order = (*config.order, name)
    return stage


def add_labels(
    config: ConfigDict, name: str, *, networks: tuple[str, ...], dataset: Mapping[str, Any], size: Any = None, **changes: Any
) -> ConfigDict:
    """Appends a stage that labels a data set with the networks of earlier stages (`segjax pseudo-label`)."""
    look = {"style": {}, "beta": 0.01, "variant": "centred"}
    rule = {"rule": "none", "share": 0.66, "cap": 0.9}
    parts = {"verb": "pseudo-label", "networks": networks, "dataset": dataset, "size": size, **look, **rule}
    mesh = {key: config.mesh.get_oneway_ref(key) for key in ("data", "fsdp")}
    stage = ConfigDict(_own_links({**parts, "batch_size": 1, **changes, "mesh": mesh}))
    config.stages[name] = stage
    config.order = (*config.order, name)
    return stage


def add_centroids(
    config: ConfigDict, name: str, *, network: str, dataset: Mapping[str, Any], size: Any = None, **changes: Any
) -> ConfigDict:
    """Appends a stage that finds the class centroids of an earlier stage's network (`segjax centroids`)."""
    parts = {"verb": "centroids", "networks": (network,), "dataset": dataset, "size": size, "passes": 5, "cap": 3000, "min_pixels": 5}
    mesh = {key: config.mesh.get_oneway_ref(key) for key in ("data", "fsdp")}
    stage = ConfigDict(_own_links({**parts, "batch_size": 1, **changes, "mesh": mesh}))
    config.stages[name] = stage
    config.order = (*config.order, name)
    return stage


def add_verb(config: ConfigDict, name: str, verb: str, **values: Any) -> ConfigDict:
    """Appends a stage of another verb with these values; what they leave out is the verb's own default."""
    return add_spec(config, name, {"verb": verb, **values})


def add_spec(config: ConfigDict, name: str, spec: Mapping[str, Any]) -> ConfigDict:
    """Appends a stage whose values are given whole."""
    config.stages[name] = ConfigDict(_own_links(spec))
    config.order = (*config.order, name)
    return config.stages[name]


def add_to_row(config: ConfigDict, row: str, stage: str) -> None:
    """Makes a stage one of those that a row of the run's table and report averages over."""
    if "rows" not in config:
        config.rows = {}
    config.rows[row] = (*config.rows.get(row, ()), stage)


def _own_links(value: Any) -> Any:
    """Gives every value that follows a field of the run its own link to it: overriding it in one stage must not change the others."""
    if isinstance(value, Mapping):
        return {key: _own_links(part) for key, part in value.items()}
    return value.identity() if isinstance(value, FieldReference) else value


def unknown(arg: str, known: tuple[str, ...]) -> ValueError:
    """The error of a variant that a config does not have."""
    return ValueError(f"unknown variant {arg!r}: expected one of {', '.join(known)}")
