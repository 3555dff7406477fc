"""The yardstick of `scripts/bench_contrastive.py`: torch eager, all similarities at once, value and gradient."""

import torch


def value_and_grad(anchors, keys, anchor_label, key_label, *, temperature, form):
    anchors, keys = anchors.detach().requires_grad_(), keys.detach().requires_grad_()
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
    loss = -(counts * each).sum() / counts.sum()
    return loss.detach(), torch.autograd.grad(loss, (anchors, keys))
