"""The yardstick of `scripts/bench_ops.py`: FDA with torch.fft, half spectra, [B,C,H,W]; only the window goes through |.|."""

import torch


@torch.no_grad()
def amplitude_transfer(source, target, beta):
    height, width = source.shape[2:]
    b = int(min(height, width) * beta)
    rows = torch.arange(-b, b + 1, device=source.device) % height
    spectrum, donor = torch.fft.rfft2(source), torch.fft.rfft2(target)
    low = spectrum[:, :, rows, : b + 1]
    spectrum[:, :, rows, : b + 1] = torch.polar(donor[:, :, rows, : b + 1].abs(), low.angle())
    return torch.fft.irfft2(spectrum, s=(height, width))
