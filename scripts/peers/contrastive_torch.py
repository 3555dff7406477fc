"""The yardstick of the workload `contrastive`: all similarities at once, value and gradient."""

import torch
from serve import Prepared

VARIANTS = ("eager",)


def contrastive(anchors, keys, anchor_label, key_label, temperature, form):
    similarity = anchors @ keys.T / temperature
    similarity = similarity - similarity.max(1, keepdim=True).values.detach()
    valid = key_label != 255
    same = ((anchor_label[:, None] == key_label) & valid).float()
    power = torch.exp(similarity) * valid
    if form == "all":
        log_prob = similarity - torch.log(power.sum(1, keepdim=True))
    else:
        log_prob = similarity - torch.log(power + (power * (1 - same)).sum(1, keepdim=True))
    each = (same * log_prob).sum(1) / same.sum(1).clamp(min=1)
    counts = anchor_label != 255
    return -(counts * each).sum() / counts.sum()


def prepare(sizes, sets, variant, device):
    placed = [{key: torch.from_numpy(value).to(device) for key, value in each.items()} for each in sets]
    loss = torch.compile(contrastive) if variant == "compiled" else contrastive

    def call(n):
        anchors, keys = (placed[n][name].detach().requires_grad_() for name in ("anchors", "keys"))
        label = placed[n]["label"]
        value = loss(anchors, keys, label, label, sizes["temperature"], sizes["form"])
        return value.detach(), torch.autograd.grad(value, (anchors, keys))

    def out():
        value, (anchors, keys) = call(0)
        return {name: x.cpu().numpy() for name, x in (("value", value), ("anchors", anchors), ("keys", keys))}

    return Prepared(call, out)
