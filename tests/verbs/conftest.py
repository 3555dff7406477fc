"""A whole run of the quickstart config over a tiny network, made once and shared by the tests of the verbs."""

import dataclasses
import pathlib
import sys
import textwrap

import pytest

from segjax import cli

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
            stage.data.source.length = stage.data.target.length = 8
            for scored in stage.evaluate.values():
                scored.length = 3
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
