"""Makes tests/goldens/dreambooth.npz: one DreamBooth step in torch diffusers on the Stable Diffusion directory of tests/tiny_diffusion.py.

python scripts/golden_dreambooth.py        needs torch, diffusers and transformers
"""

import pathlib
import sys
import tempfile

import numpy as np

TESTS = pathlib.Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))

import dreambooth_torch as peer  # noqa: E402
import tiny_diffusion  # noqa: E402


def main() -> None:
    drawn = peer.draws(4)
    arrays = dict(drawn)
    folder = tiny_diffusion.write(pathlib.Path(tempfile.mkdtemp()), TESTS / "goldens")
    for case, (prediction, prior) in peer.CASES.items():
        found = peer.step(folder, prediction, prior, drawn)
        kept = {name: value for name, value in found.items() if "/" not in name or name.split("/")[1] in peer.KEPT}
        print(case, {name: float(value) for name, value in found.items() if "/" not in name}, len(found))
        arrays |= {f"{case}/{name}": value for name, value in kept.items()}
    path = TESTS / "goldens" / "dreambooth.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
