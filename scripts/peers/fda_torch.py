"""The yardstick of the workload `fda`: torch.fft, half spectra, [B,C,H,W]; only the window goes through |.|."""

import torch
from serve import Prepared

VARIANTS = ("eager",)


@torch.no_grad()
def amplitude_transfer(source, target, beta):
    height, width = source.shape[2:]
    b = int(min(height, width) * beta)
    rows = torch.arange(-b, b + 1, device=source.device) % height
    spectrum, donor = torch.fft.rfft2(source), torch.fft.rfft2(target)
    low = spectrum[:, :, rows, : b + 1]
    spectrum[:, :, rows, : b + 1] = torch.polar(donor[:, :, rows, : b + 1].abs(), low.angle())
    return torch.fft.irfft2(spectrum, s=(height, width))


def prepare(sizes, sets, variant, device):
    """Images lie as torch likes them, [B,C,H,W], before the clock starts."""
    chw = lambda x: torch.from_numpy(x).to(device).permute(0, 3, 1, 2).contiguous()
    placed = [(chw(each["source"]), chw(each["target"])) for each in sets]
    transfer = torch.compile(amplitude_transfer) if variant == "compiled" else amplitude_transfer
    call = lambda n: transfer(*placed[n], sizes["beta"])
    return Prepared(call, lambda: {"image": amplitude_transfer(*placed[0], sizes["beta"]).permute(0, 2, 3, 1).cpu().numpy()})
