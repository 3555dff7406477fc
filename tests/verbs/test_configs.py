"""Every config and variant builds: import strings, keywords, shapes of a whole training step under eval_shape; no data, no device."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_layouts
from ml_collections import ConfigDict

from segjax import errors
from segjax.generation import captions
from segjax.nets.translator import Translator
from segjax.runtime import optim
from segjax.verbs import build, config_file, evaluate, prompt_values, stages, variables
from segjax.weights import safetensors_io

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
OWN_NETWORKS = tuple(f"segjax.methods.{name}:make" for name in ("clouds", "clouds_warmup", "diga_translator"))
"""Methods over networks of other outputs than classes a pixel: tests/methods, test_clouds_run and test_diga_run run them."""
SPECS = {
    "quickstart.py": 351_660,
    "camvid_day_dusk.py": None,
    "camvid_day_dusk.py:from_scratch": 350_508,
    "fda.py:gta_cityscapes": 43_901_068,
    "fda.py:synthia_cityscapes": 43_901_068,
    "fda.py:camvid_day_dusk": None,
    "fda_contrastive.py:quickstart": 351_660,
    "fda_contrastive.py:camvid_day_dusk": None,
    "fda_contrastive.py:gta_cityscapes": 43_901_068,
    "fda_contrastive.py:gta_cityscapes,net=enet,row=all": None,
    "fda_contrastive.py:gta_cityscapes,net=vgg16,row=cl_gt": 29_573_004,
    "diga.py": 65_063_568,
    "diga.py:gta_cityscapes,translator=identity,row=faithful": 65_063_568,
    "diga.py:gta_cityscapes,row=dg": 65_063_568,
    "diga.py:gta_cityscapes,translator=fda,row=threshold": 65_063_568,
    "diga.py:synthia_cityscapes": 65_062_800,
    "diga.py:synthia_cityscapes,row=no_crossdomix": 65_062_800,
    "diga.py:semi_cityscapes,split=8": None,
    "diga.py:camvid_day_dusk": None,
    "diga.py:camvid_day_dusk,row=no_symmetric": None,
    "diga.py:camvid_day_dusk,row=threshold": None,
    "diga.py:quickstart": 351_660,
    "uda.py": 85_155_283,
    "uda.py:gta_cityscapes,host=mic": 85_685_990,
    "uda.py:synthia_cityscapes,host=mic_daformer,net=r101": None,
    "uda.py:cityscapes_dark_zurich,host=hrda,net=r101": None,
    "uda.py:cityscapes_acdc,host=dacs": 85_155_283,
    "uda.py:gta_cityscapes,host=source_only": 85_155_283,
    "datum.py": 85_155_283,
    "datum.py:gta_cityscapes,host=hrda,shots=1": 85_685_990,
    "datum.py:synthia_cityscapes,host=mic,generator=fda,net=r101,shots=1": None,
    "datum.py:gta_cityscapes,host=dacs,generator=none,images=full": 85_155_283,
    "datum.py:synthia_cityscapes,host=diga,shots=1": None,
    "datum.py:gta_cityscapes,host=fda_contrastive,generator=none": 43_901_068,
    "datum.py:camvid_one_shot": None,
    "datum.py:quickstart,generator=none": 351_660,
    "clouds.py:quickstart": 848_836,
    "clouds.py:camvid,sam=efficient_s": None,
    "clouds.py": 220_024_724,
    "clouds.py:synthia,net=clip_rn50,sam=off,ema=every_step,head=text,ensemble=on": None,
    "clouds.py:gta,net=clip_rn101,training=trainable,images=off,scored=resized,head=pooled": None,
    "clouds.py:cityscapes,net=mit_b5,sam=vit_h,second_pass=on": None,
}


def load(spec: str, *overrides: str):
    return config_file.load(str(CONFIGS / spec), overrides)


def test_no_config_is_left_out():
    assert {path.name for path in CONFIGS.glob("*.py")} - {"base.py"} == {spec.split(":")[0] for spec in SPECS}


@pytest.mark.parametrize("spec", SPECS)
def test_builds_and_steps_under_eval_shape(spec, tiny_config, seen):
    config = load(spec)
    for name in build.stage_names(config):
        stages.module(config, name).check_stage(config, name)
        if stages.verb(config, name) != stages.TRAIN:
            continue
        stage = build.stage(config, name)
        params, settings = variables.shapes(stage.model)["params"], stage.spec["optimizer"]
        count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
        assert SPECS[spec] in (None, count) or not hasattr(stage.model, "num_classes")
        if seen("optimizer", stage.model, settings):
            optimizer = optim.make_optimizer(**{"total_steps": stage.spec["steps"], **settings})
            jax.eval_shape(optimizer.init, params)  # every pattern finds a parameter
        if stage.spec["method"]["make"] not in OWN_NETWORKS and seen("method", stage.spec["method"]):
            _trace(build.stage(_over_tiny(config, name), name))


@pytest.fixture(scope="module")
def seen():
    """Whether values are new: the configs share settings of methods and networks, and each is looked at once."""
    known = set()

    def new(*values) -> bool:
        before = len(known)
        known.add(repr(values))
        return len(known) > before

    return new


def _over_tiny(config, name: str):
    """The config with a network of one convolution in a stage: every setting of its method is traced, and none of its network's layers."""
    stage = config.stages[name]
    with config.unlocked():
        stage.model = ConfigDict({"make": "verbs_tiny_net:Tiny", "num_classes": stage.model.num_classes})
        stage.optimizer.update({key: () for key in ("multipliers", "no_decay") if key in stage.optimizer})
    return config


@pytest.mark.parametrize(("spec", "name"), [("quickstart.py", "source_only"), ("fda.py", "fda"), ("uda.py", "daformer")])
def test_a_step_over_the_network_itself(spec, name):
    """ENet's, DeepLabV2-R101's and DAFormer's on MiT-B5, of full size; the other networks' steps are those of tests/methods."""
    _trace(build.stage(load(spec), name))


def _trace(stage):
    batch = {**evaluate.batch_shapes(), "target_label": evaluate.batch_shapes()["source_label"]}
    if stage.spec["method"].get("ignore_bottom"):  # margins of a whole crop
        batch = {key: jax.ShapeDtypeStruct((1, *stage.spec["data"]["crop"], *x.shape[3:]), x.dtype) for key, x in batch.items()}
    state = jax.eval_shape(stage.method.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(stage.method.step, state, _frozen(stage, state), batch)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(lambda a: (a.shape, a.dtype), after)
    assert metrics and all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
    answer = jax.eval_shape(stage.method.predict, state, (), batch["source_image"])
    assert answer.shape == (*batch["source_image"].shape[:3], getattr(stage.model, "num_classes", 3))


def _frozen(stage, state):
    """Shapes of what a stage names as frozen: a translator, class centroids, an encoder as ImageNet left it."""
    shape = getattr(getattr(state, "centroids", None), "shape", ())
    known = {
        "translator": lambda: variables.shapes(Translator()),
        "imagenet": lambda: variables.shapes(stage.model),
        "segmenter": lambda: variables.shapes(build.network(stage.spec["method"]["segmenter"], "segmenter")),
        "centroids": lambda: {name: jax.ShapeDtypeStruct(shape[:n], jnp.float32) for name, n in (("centroids", 2), ("counts", 1))},
    }
    return {name: known[name]() for name in stage.spec["frozen"]} or ()


def test_the_seeds_settings_of_model_2():
    method = load("fda_contrastive.py").stages.cl_pl.method
    assert (method.beta, method.temperature, method.samples, method.form) == (0.09, 0.07, 2000, "negatives")
    assert (method.contrast_start, method.entropy_weight, method.contrast_weight, method.projection) == (50_000, 0.005, 1.0, 0)
    assert load("fda_contrastive.py").stages.model1.method.greyscale and load("fda_contrastive.py").stages.model1.method.betas == ()
    enet = load("fda_contrastive.py:gta_cityscapes,net=enet,row=ce_pl").stages.ce_pl
    assert (enet.model.embedding, enet.method.contrast_weight, enet.method.target_ce_weight) == (64, 0.0, 1.0)
    with pytest.raises(errors.ConfigError, match="row=some"):
        load("fda_contrastive.py:gta_cityscapes,row=some")


def test_the_paper_settings_of_fda():
    stage = load("fda.py").stages.fda
    assert (stage.steps, stage.batch_size, stage.data.crop, stage.data.flip) == (100_000, 1, (512, 1024), False)
    assert (stage.optimizer.name, stage.optimizer.lr, stage.optimizer.momentum, stage.optimizer.weight_decay) == ("sgd", 2.5e-4, 0.9, 5e-4)
    assert (stage.optimizer.power, stage.optimizer.total_steps, stage.optimizer.multipliers) == (0.9, 150_000, (("classifier", 10.0),))
    assert (stage.method.entropy_weight, stage.method.entropy_eta, stage.evaluate.cityscapes.size) == (0.005, 2.0, (576, 1344))
    assert load("fda.py:synthia_cityscapes").stages.fda.evaluate.cityscapes.score == "mIoU16"
    assert "classifier" in " ".join(variables.classifier_axes(build.stage(load("fda.py"), "fda").model))


def test_the_settings_of_diga():
    gta = load("diga.py")
    assert gta.order == ("translator", "warmup", "pseudo", "centroids", "selftrain", "pseudo_2", "selftrain_2")
    warm, train = gta.stages.warmup, gta.stages.selftrain_2
    assert (warm.steps, warm.batch_size, warm.data.crop, warm.method.distill_weight) == (80_000, 3, (512, 896), 0.5)
    shares = [[crop["share"] for crop in stage.data.source_crops] for stage in (warm, train)]
    assert shares == [[1.0, 2.0], [2.0, 1.0]]
    assert (train.start_from, train.method.distill_weight, train.method.view_share) == ("selftrain", 0.25, 0.3)
    assert train.frozen.centroids == gta.stages.selftrain.frozen.centroids and train.data.target.labels == "{stage:pseudo_2}"
    assert (gta.stages.translator.steps, gta.stages.translator.optimizer.betas) == (50_000, (0.5, 0.999))
    seen = load("diga.py:synthia_cityscapes,perceptual=on", "--config.vgg=here.pth").stages.translator
    assert (seen.method.perceptual_weight, seen.frozen.vgg, gta.stages.translator.method.perceptual_weight) == (0.1, "here.pth", 0.0)
    synthia, released = load("diga.py:synthia_cityscapes").stages.warmup, load("diga.py:synthia_cityscapes,row=faithful").stages.warmup
    assert (synthia.steps, synthia.batch_size, synthia.method.hard, synthia.method.reverse_weight) == (60_000, 4, (0.7, 100_000), 0.25)
    assert (synthia.optimizer.schedule, synthia.optimizer.warmup_steps) == ("poly", 1000)
    assert (released.optimizer.schedule, released.optimizer.warmup_steps) == ("constant", 60_000) and released.method.faithful_teacher
    assert not load("diga.py:gta_cityscapes,row=dg").stages.warmup.data.target  # it never sees Cityscapes
    semi = load("diga.py:semi_cityscapes,split=16").stages
    assert semi.warmup.data.source.names == "data/splits/train_image_labeled_1-16.txt" and semi.warmup.method.second_view == "photometric"
    for wrong in ("gta_cityscapes,row=some", "semi_cityscapes,split=3", "camvid_day_dusk,translator=gan", "bdd"):
        with pytest.raises(errors.ConfigError, match=wrong.split(",")[-1]):
            load(f"diga.py:{wrong}")


@pytest.mark.parametrize(
    ("arg", "folder", "write", "length", "height", "classes"),
    [
        ("gta_cityscapes", "gta5", small_layouts.gta5, 4, 720, {0, 18}),
        ("synthia_cityscapes", "RAND_CITYSCAPES", small_layouts.synthia, 2, 760, {0, 17}),
    ],
)
def test_the_paper_data_sets_are_read_as_downloaded(arg, folder, write, length, height, classes, tmp_path):
    write(tmp_path / folder)
    small_layouts.cityscapes(tmp_path / "cityscapes")
    stage = build.stage(load(f"fda.py:{arg}", f"--config.data={tmp_path}"), "fda")
    data = build.training_data(stage)
    assert (len(data.source), data.source.labelled, len(data.target), data.target.labelled) == (length, True, 2, False)
    assert (data.source[0]["image"].shape, data.target[0]["image"].shape) == ((height, 1280, 3), (512, 1024, 3))
    assert set(np.unique(data.source[0]["label"])) == classes
    scored = build.dataset(stage.spec["evaluate"]["cityscapes"], "cityscapes", scored=True)
    assert (scored.name(0), scored.labelled) == ("ulm/ulm_000000_000019_leftImg8bit.png", True)


def test_digas_data_is_read_as_downloaded(tmp_path):
    """GTA5 at its own size, cut from two; the lists of labelled and unlabelled images of the semi-supervised splits."""
    small_layouts.gta5(tmp_path / "gta5")
    small_layouts.cityscapes(tmp_path / "cityscapes")
    (tmp_path / "splits").mkdir()
    for kind, city in (("labeled", "aachen"), ("unlabeled", "bonn")):
        (tmp_path / f"splits/train_image_{kind}_1-8.txt").write_text(f"leftImg8bit/train/{city}/{city}_000000_000019_leftImg8bit.png\n")
    data, alone = (
        build.training_data(build.stage(load(f"diga.py:gta_cityscapes,row={row}", f"--config.data={tmp_path}"), "warmup"))
        for row in ("diga", "dg")
    )
    assert (len(data.source), len(data.target), data.target.labelled, len(data.streams)) == (4, 2, False, 2)
    assert alone.target is None and len(alone.streams) == 1
    semi = load("diga.py:semi_cityscapes,split=8", f"--config.data={tmp_path}", f"--config.splits={tmp_path / 'splits'}")
    source = build.training_data(build.stage(semi, "warmup")).source
    target = build.dataset(build.plain(semi.stages.selftrain.data.target.dataset), "target")
    assert (source.name(0)[:6], target.name(0)[:4]) == ("aachen", "bonn") and (source.labelled, target.labelled) == (True, False)
    assert len(source) == len(target) == len(build.dataset(build.plain(semi.stages.pseudo.dataset), "pseudo")) == 1


def test_the_broken_pairs_of_gta5_can_be_kept(tmp_path):
    small_layouts.gta5(tmp_path / "gta5")
    spec = build.stage(load("fda.py", f"--config.data={tmp_path}", "--config.stages.fda.data.source.broken=True"), "fda").spec
    assert len(build.dataset(spec["data"]["source"], "source")) == 6


def test_top_level_fields_reach_every_stage():
    config = load(
        "camvid_day_dusk.py", "--config.data=/elsewhere", "--config.steps=9", "--config.mesh.data=2", "--config.stages.fda.steps=4"
    )
    assert [config.stages[name].steps for name in ("source_only", "fda")] == [9, 4]
    assert config.stages.adabn.data.source.file_list == "/elsewhere/train.txt"
    assert all(stage.mesh.data == 2 for stage in config.stages.values())


def test_stages_do_not_share_what_an_override_changes():
    config = load("quickstart.py", "--config.stages.fda.optimizer.lr=0.5", "--config.stages.fda.data.crop=(32,32)")
    assert config.stages.source_only.optimizer.lr != 0.5
    assert config.stages.source_only.data.crop == (64, 128) and config.stages.adabn.data.crop == (96, 192)


@pytest.mark.parametrize(
    ("path", "value", "error", "words"),
    [
        ("stages.fda.method.make", "segjax.methods.fda", errors.ConfigError, ["expected 'package.module:name'"]),
        ("stages.fda.method.make", "segjax.methods.fdda:make", errors.ConfigError, ["no module 'segjax.methods.fdda'"]),
        ("stages.fda.method.make", "segjax.methods.fda:mak", errors.ConfigError, ["did you mean 'make'"]),
        (
            "stages.fda.method",
            {"make": "segjax.methods.fda:make", "bets": (1,)},
            errors.ConfigError,
            ["method.bets", "did you mean 'betas'"],
        ),
        ("stages.fda.model", {"make": "segjax.nets.enet:ENet"}, errors.ConfigError, ["needs num_classes"]),
        ("stages.fda.model.dtype", "bfloat17", errors.ConfigError, ["did you mean 'bfloat16'"]),
        ("stages.fda.optimizer.name", "adams", errors.ConfigError, ["optimizer", "adam"]),
        ("stages.fda.steps", -1, errors.ConfigError, ["steps=-1"]),
        ("stages.fda.data.crop", (64,), errors.ConfigError, ["data.crop", "two positive numbers"]),
        ("stages.fda.start_from", "sauce", errors.ConfigError, ["start_from='sauce'", "source_only, adabn"]),
        ("order", ("source_only", "fad"), errors.ConfigError, ["'fad'", "did you mean 'fda'"]),
        ("stages.fda.model.num_classes", 18, errors.ConfigError, ["num_classes=18", "cityscapes19 with 19 classes"]),
        ("stages.fda.data.crop", (500, 64), errors.DataError, ["crop 64x500 is larger than 192x96"]),
        ("stages.fda.data.source.look", "dawn", errors.ConfigError, ["look='dawn'"]),
        ("seed", -1, errors.ConfigError, ["config.seed=-1"]),
        ("stages.fda.optimizer.lr", -0.1, errors.ConfigError, ["optimizer.lr=-0.1"]),
        ("stages.fda.checkpoint_evry", 5, errors.ConfigError, ["stages.fda.checkpoint_evry", "did you mean 'checkpoint_every'"]),
        ("stages.fda.data", {"source": {"make": "segjax.data.procedural:StreetScenes"}}, errors.ConfigError, ["data.crop"]),
        ("stages.fda.data.target.length", 0, errors.DataError, ["stages.fda.data.target", "is empty"]),
    ],
)
def test_a_mistake_is_named_before_a_device_is_touched(path, value, error, words):
    config = load("quickstart.py")
    with config.unlocked():
        config.update_from_flattened_dict({path: value}) if not isinstance(value, dict) else _set(config, path, value)
    with pytest.raises(error) as caught:
        build.stage_names(config)
        build.training_data(build.stage(config, "fda"))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), caught.value


def test_a_mesh_takes_known_axes_alone():
    config = load("quickstart.py")
    with config.unlocked():
        config.stages.fda.mesh.dta = 2
    with pytest.raises(errors.ConfigError, match="stages.fda.mesh.dta.*did you mean 'data'"):
        build.make_mesh(build.stage(config, "fda"))


def _set(config, path: str, value):
    *parents, last = path.split(".")
    for parent in parents:
        config = config[parent]
    del config[last]
    config[last] = value


def test_a_batch_that_does_not_divide_names_the_way_out():
    stage = build.stage(load("quickstart.py", "--config.batch_size=6"), "fda")
    mesh = jax.make_mesh((8, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(errors.ConfigError, match="batch_size=6 is not divisible by the 8 devices.*mesh.data=6"):
        build.check_batch(stage, mesh)
    stage = build.stage(load("clouds.py:gta", "--config.stages.joint.batch_size=8"), "joint")
    with pytest.raises(
        errors.ConfigError, match="data.target_batch_size=2 is not divisible by the 8 devices.*target_batch_size=8.*mesh.data=2"
    ):
        build.check_batch(stage, mesh)


def test_the_released_settings_of_clouds():
    gta, synthia, city = (load(f"clouds.py:{place}") for place in ("gta", "synthia", "cityscapes"))
    assert gta.order == ("prompts", "images", "warmup", "joint") and load("clouds.py:gta,images=off").order == ("warmup",)
    assert [(c.stages.warmup.steps, c.stages.joint.steps) for c in (gta, synthia, city)] == [(40_000,) * 2, (30_000,) * 2, (5000, 10_000)]
    assert [(c.stages.joint.optimizer.lr, c.stages.joint.optimizer.schedule) for c in (gta, synthia, city)] == [
        *[(1e-5, "constant"), (1e-5, "poly"), (1e-4, "constant")]
    ]
    joint, images = gta.stages.joint, gta.stages.images
    assert (joint.optimizer.name, joint.optimizer.weight_decay, joint.optimizer.clip_norm, joint.optimizer.multipliers) == (
        "adamw",
        0.05,
        0.01,
        (),
    )
    assert (gta.stages.warmup.batch_size, joint.batch_size, joint.data.target_batch_size, joint.start_from) == (8, 6, 2, "warmup")
    assert (joint.data.crop, joint.data.scale, joint.data.target_crops.scale) == ((768, 768), (0.5, 2.0), (1.0, 1.0))
    assert (joint.method.ema_every, joint.method.ema_decay, joint.method.min_area, joint.method.prompt_points) == (100, 0.999, 5000, 5)
    assert (images.count, images.sampler, joint.method.segmenter.make) == (5000, "euler", "segjax.nets.mobile_sam:MobileSam")
    assert set(city.stages.joint.evaluate) == {"cityscapes", "acdc_night", "acdc_rain", "acdc_snow", "acdc_fog"}
    resized = load("clouds.py:gta,scored=resized").stages.joint.evaluate
    assert resized.bdd100k.resize == joint.evaluate.bdd100k.size == 1024 and "resize" not in resized.cityscapes
    learns = load("clouds.py:gta,training=trainable,sam=off,ema=every_step").stages.joint
    assert learns.optimizer.multipliers == ((r"params/backbone/", 0.1),) and not learns.model.frozen and not learns.frozen
    assert (learns.method.segmenter, learns.method.ema_every) == (None, 1)
    few = load("clouds.py:gta", "--config.prefix=500").stages
    assert (few.joint.data.target.prefix, few.images.count, joint.data.target.prefix) == (500, 5000, None)
    words = load("clouds.py:gta,net=clip_rn101,head=text,ensemble=on", "--config.clip=my.pt").stages.joint.model
    assert (words.words.clip, words.words.templates, words.embed_dim, words.ensemble_on_valid_mask) == ("my.pt", "vild", 512, True)
    assert "class_head" not in joint.model and load("clouds.py:gta,head=pooled").stages.joint.model.class_head == "pooled"
    own = load("clouds.py:gta", "--config.stages.prompts.model=", "--config.stages.prompts.file=mine.txt", "--config.dtype=bfloat16")
    stages.module(own, "prompts").check_stage(own, "prompts")
    asked = [
        prompt_values.of_stage(load("clouds.py:gta", *told), "prompts", {})["instruction"]
        for told in ([], ["--config.stages.prompts.instruction=Describe {number} streets."])
    ]
    assert asked == [captions.INSTRUCTION, "Describe {number} streets."]
    assert own.stages.joint.model.dtype == own.stages.joint.method.segmenter.dtype == "bfloat16"
    for wrong in ("gta,sam=huge", "quickstart,net=clip_rn50", "bdd", "gta,net=mit_b5,head=text"):
        with pytest.raises(errors.ConfigError, match=wrong.split("=")[-1].split(",")[-1]):
            load(f"clouds.py:{wrong}")


@pytest.fixture(scope="module")
def cityscapes_file(tmp_path_factory):
    """Variables of a 20-output ENet, numbered so that every output can be recognised, as a weights file."""
    path = tmp_path_factory.mktemp("weights") / "enet20.safetensors"
    model = build.stage(load("camvid_day_dusk.py"), "fda").model.clone(num_classes=20)
    axes = variables.classifier_axes(model)
    flat = {}
    for name, leaf in safetensors_io.flatten(variables.shapes(model)).items():
        flat[name] = np.zeros(leaf.shape, np.float32)
        if name in axes:
            shape = [-1 if axis == axes[name] else 1 for axis in range(len(leaf.shape))]
            flat[name] += np.arange(20, dtype=np.float32).reshape(shape)
    safetensors_io.write(path, flat)
    return path, axes


def test_a_cityscapes_classifier_is_carried_to_camvid(cityscapes_file):
    path, axes = cityscapes_file
    stage = build.stage(load("camvid_day_dusk.py", f"--config.weights={path}"), "fda")
    source_space = config_space("camvid11")
    flat = safetensors_io.flatten(variables.initial(stage, source_space))
    # sky, building, pole, road, sidewalk, tree, sign, fence, car, pedestrian, bicyclist as Torch7 outputs (0 = unlabelled)
    expected = [11, 3, 6, 1, 2, 9, 8, 5, 14, 12, 19]
    for name, axis in axes.items():
        found = np.moveaxis(flat[name], axis, -1).reshape(-1, 11)
        assert (found == expected).all(), name


def config_space(name):
    from segjax.data import label_spaces

    return label_spaces.get(name)


def test_weights_that_are_missing_or_for_another_network(cityscapes_file, tmp_path):
    space = config_space("camvid11")
    stage = build.stage(load("camvid_day_dusk.py", f"--config.weights={tmp_path / 'none.safetensors'}"), "fda")
    with pytest.raises(errors.WeightsError, match="none.safetensors.*no such file"):
        variables.initial(stage, space)
    other = build.stage(load("camvid_day_dusk.py:from_scratch", f"--config.weights={cityscapes_file[0]}"), "fda")
    with pytest.raises(errors.WeightsError, match="enet20.safetensors"):
        variables.initial(other, space)


def test_the_space_of_a_network_follows_from_its_outputs():
    assert [build.output_space("", n, "x")[0].name for n in (11, 13, 16, 19, 20)] == [
        "camvid11",
        "synthia13",
        "synthia16",
        "cityscapes19",
        "cityscapes19",
    ]
    assert build.output_space("", 20, "x")[1] == 1
    with pytest.raises(errors.ConfigError, match="7 outputs"):
        build.output_space("", 7, "x")
    with pytest.raises(errors.ConfigError, match="do not fit"):
        build.output_space("camvid11", 19, "x")


def test_sharding_overrides_reach_the_loop_as_partition_specs():
    config = load("quickstart.py")
    config.stages.source_only.sharding = (("conv2/kernel", (None, None, None, "fsdp")),)
    stage = build.stage(config, "source_only")
    assert build.sharding_overrides(stage) == (("conv2/kernel", jax.sharding.PartitionSpec(None, None, None, "fsdp")),)
    config.stages.source_only.sharding = ("conv2/kernel",)
    with pytest.raises(errors.ConfigError, match="sharding"):
        build.sharding_overrides(build.stage(config, "source_only"))
