"""The yardstick of the workload `upsample_ce`: interpolate, cross_entropy, autograd, [B,C,H,W]."""

import torch
from serve import Prepared


def loss(logits, label):
    full = torch.nn.functional.interpolate(logits, label.shape[1:], mode="bilinear", align_corners=False)
    return torch.nn.functional.cross_entropy(full, label, ignore_index=255)


def prepare(sizes, sets, variant, device):
    layout = torch.contiguous_format if variant == "eager" else torch.channels_last
    logits = [torch.from_numpy(s["logits"]).to(device).permute(0, 3, 1, 2).contiguous(memory_format=layout) for s in sets]
    labels = [torch.from_numpy(s["label"]).to(device).long() for s in sets]
    value = torch.compile(loss) if variant == "compiled" else loss

    def call(n):
        x = logits[n].detach().requires_grad_()
        found = value(x, labels[n])
        return found.detach(), torch.autograd.grad(found, x)[0]

    def out():
        found, gradient = call(0)
        return {"value": found.cpu().numpy(), "gradient": gradient.permute(0, 2, 3, 1).cpu().numpy()}

    return Prepared(call, out)
