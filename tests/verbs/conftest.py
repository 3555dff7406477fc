"""A whole run of the quickstart config over a tiny network, made once and shared by the tests of the verbs."""

import dataclasses
import pathlib
import sys
import textwrap

import pytest

from segjax import cli
from segjax.generation import diffusion, language
from segjax.verbs import build, personalize_work, scoring

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
NET = """
    import flax.linen as nn
    import jax.numpy as jnp

    from segjax.nets.layers import BatchNorm, Conv


    class Tiny(nn.Module):
        num_classes: int
        dtype: jnp.dtype = jnp.float32
        align_corners: bool = False

        @nn.compact
        def __call__(self, image, train=False):
            x = Conv(8, (3, 3), 2, padding=1, name="conv")(image)
            x = nn.relu(BatchNorm(name="norm")(x, train))
            return {"logits": Conv(self.num_classes, (1, 1), use_bias=True, name="classifier")(x), "features": x}
"""
CONFIG = """
    import sys

    sys.path.insert(0, CONFIGS)
    import quickstart
    from ml_collections import ConfigDict

    MODEL = {"make": "verbs_tiny_net:Tiny", "num_classes": 19, "dtype": "float32", "weights": "", "weights_space": "", "classifier": "map"}


    def get_config():
        config = quickstart.get_config()
        config.steps, config.batch_size, config.checkpoint_every, config.log_every = 4, 2, 2, 1
        config.size = config.crop = (32, 64)
        config.mesh.data = 2
        for stage in config.stages.values():
            stage.model = ConfigDict(MODEL)
            read = [stage.data.source, stage.data.target, *stage.evaluate.values()]
            for number, part in enumerate(read):
                part.update({"length": 8 if number < 2 else 3, "cache": True})  # drawing a scene takes longer than a step
        config.stages.adabn.steps, config.stages.fda.steps = 2, 4
        return config
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """config: path of the config file. workdir: what `segjax run` left. code, out: its exit code and what it printed."""

    config: str
    workdir: pathlib.Path
    code: int
    out: str


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory) -> str:
    """quickstart.py at 32x64 over a network of one convolution, as a research fork would write it: one file with the net, one config."""
    folder = tmp_path_factory.mktemp("fork")
    (folder / "verbs_tiny_net.py").write_text(textwrap.dedent(NET))
    (folder / "tiny.py").write_text(textwrap.dedent(CONFIG).replace("CONFIGS", repr(str(CONFIGS))))
    sys.path.insert(0, str(folder))
    return str(folder / "tiny.py")


@pytest.fixture(scope="session")
def finished(tiny_config, tmp_path_factory) -> Run:
    """A finished run. Read it only: copy what a test changes."""
    import contextlib
    import io

    workdir, out = tmp_path_factory.mktemp("runs") / "run", io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main(["run", f"--config={tiny_config}", f"--workdir={workdir}"])
    return Run(tiny_config, workdir, code, out.getvalue())


@pytest.fixture(scope="module")
def traced_once():
    """Runs that start again in this process have one method, and one generator of images or texts, for the same settings, and one scorer
    of a method: each is traced once.

    The folders of a run are no part of them. What a restart computes anew is tested with the methods and the loop.
    """
    assemble, known = build._assemble, {}

    def stage(name, seed, spec):
        made = assemble(name, seed, spec)
        settings = {key: made.spec[key] for key in ("method", "model", "optimizer", "steps")}
        first = known.setdefault(repr((name, seed, settings)), made)
        return dataclasses.replace(made, model=first.model, method=first.method)

    def generator(networks, sampler, mesh, **how):
        key = repr((networks, sampler.step.__qualname__, sampler.timesteps.tolist(), mesh, how))
        return known[key] if key in known else known.setdefault(key, generate(networks, sampler, mesh, **how))

    def method(spec, networks, scheduler, where):
        key = repr((spec, networks, scheduler))
        return known[key] if key in known else known.setdefault(key, personalize(spec, networks, scheduler, where))

    def writer(net, mesh, shardings, **how):
        key = repr((net, mesh, how))
        return known[key] if key in known else known.setdefault(key, write(net, mesh, shardings, **how))

    def scorer(stage, space, first, mesh):
        key = stage.method.predict, stage.spec["batch_size"], space.name, first, mesh
        return known[key] if key in known else known.setdefault(key, score(stage, space, first, mesh))

    generate, write, personalize, score = diffusion.generator, language.generator, personalize_work.method, scoring.Scorer
    ours = ((build, "_assemble", stage), (diffusion, "generator", generator), (language, "generator", writer))
    ours += ((personalize_work, "method", method), (scoring, "Scorer", scorer))
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, once in ours:
            patch.setattr(owner, name, once)
        yield
