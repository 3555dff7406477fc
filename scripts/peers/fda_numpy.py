"""The yardstick of `scripts/bench_ops.py`: FDA written plainly in numpy, whole FFT, [B,C,H,W] as its authors lay images out."""

import numpy as np


def amplitude_transfer(source, target, beta):
    height, width = source.shape[2:]
    b, y, x = int(min(height, width) * beta), height // 2, width // 2
    source_spectrum, target_spectrum = np.fft.fft2(source), np.fft.fft2(target)
    amplitude = np.fft.fftshift(np.abs(source_spectrum), axes=(2, 3))
    donor = np.fft.fftshift(np.abs(target_spectrum), axes=(2, 3))
    window = np.s_[:, :, y - b : y + b + 1, x - b : x + b + 1]
    amplitude[window] = donor[window]
    amplitude = np.fft.ifftshift(amplitude, axes=(2, 3))
    return np.real(np.fft.ifft2(amplitude * np.exp(1j * np.angle(source_spectrum))))
