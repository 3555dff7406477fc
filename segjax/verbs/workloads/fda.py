"""FDA: the source in the low-frequency amplitudes of the target (`ops.fourier`), against numpy's whole FFT in float64."""

import functools

import numpy as np

from segjax.ops.fourier import Form, amplitude_transfer
from segjax.verbs.workloads import Arrays, Workload


def make(*, devices: int, batch: int = 2, height: int = 512, width: int = 1024, beta: float = 0.05, form: Form = "auto") -> Workload:
    """Images float32 [batch a device,height,width,3] in 0..255. form: "banded", "fft" or, as in training, "auto"."""
    transfer = functools.partial(amplitude_transfer, beta=beta, form=form)

    def draw(rng: np.random.Generator) -> Arrays:
        return {name: photographs(rng, (batch * devices, height, width, 3)) for name in ("source", "target")}

    return Workload(
        step=lambda carry, inputs: (carry, {"image": transfer(inputs["source"], inputs["target"])}),
        draw=draw,
        reference=lambda carry, inputs: {"image": plain(np.asarray(inputs["source"]), np.asarray(inputs["target"]), beta)},
        tolerance=2e-5,
        rows=batch * devices,
        sizes={"batch": batch, "height": height, "width": width, "beta": beta, "form": form},
        peer="fda_torch",
    )


def photographs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise whose spectrum falls off with frequency as a photograph's does, with white noise on top, float32 in 0..255."""
    ramp = np.cumsum(np.cumsum(rng.standard_normal(shape, np.float32), 1), 2)
    ramp = (ramp - ramp.min()) / np.ptp(ramp) * 225 + rng.random(shape, np.float32) * 30
    return ramp.astype(np.float32)


def plain(source: np.ndarray, target: np.ndarray, beta: float) -> np.ndarray:
    """FDA as its authors write it (YanchaoYang/FDA, FDA_source_to_target_np), float64 [B,H,W,C]."""
    height, width = source.shape[1:3]
    b, y, x = int(min(height, width) * beta), height // 2, width // 2
    spectrum, donor = (np.fft.fft2(image.astype(np.float64), axes=(1, 2)) for image in (source, target))
    amplitude, other = (np.fft.fftshift(np.abs(found), axes=(1, 2)) for found in (spectrum, donor))
    window = np.s_[:, y - b : y + b + 1, x - b : x + b + 1]
    amplitude[window] = other[window]
    amplitude = np.fft.ifftshift(amplitude, axes=(1, 2))
    return np.real(np.fft.ifft2(amplitude * np.exp(1j * np.angle(spectrum)), axes=(1, 2)))
