"""The yardstick of the workload `diga_selftrain`: DiGA's self-training step (fy-vision/DiGA, GTA5) over ENet, written plainly in torch.

The views change the pictures that a draw chooses, no others, as kornia does; all else is what `segjax.methods.diga_selftrain` does with its
default values. The random numbers are torch's own, so the evaluation logits are what is compared.
"""

import torch
from enet_torch import ENet
from fda_torch import amplitude_transfer
from serve import Prepared
from torch import nn

MOMENTUM, DECAY, SHARE, BETA, REVERSE, DISTILL, IGNORE = 1e-4, 0.999, 0.3, 0.01, 0.5, 0.25, 255
LUMA = (0.299, 0.587, 0.114)


def sometimes(x, probability, change):
    """`change` of the pictures that are drawn."""
    chosen = torch.rand(len(x), device=x.device) < probability
    if not chosen.any():
        return x
    x = x.clone()
    x[chosen] = change(x[chosen])
    return x


def uniform(x, low, high):
    return torch.rand(len(x), 1, 1, 1, device=x.device) * (high - low) + low


def grey(x):
    weights = torch.tensor(LUMA, device=x.device).reshape(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True).expand_as(x)


def saturate(x, factor):
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = high - low
    fullest = high / torch.where(spread > 0, spread, 1)
    return high - (high - x) * torch.minimum(factor, fullest)


def turn(x, shift):
    red, green, blue = x.chunk(3, 1)
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = high - low
    safe = torch.where(spread > 0, spread, 1)
    sixth = torch.where(high == red, (green - blue) / safe, torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe))
    k = (torch.tensor([5.0, 3.0, 1.0], device=x.device).reshape(1, 3, 1, 1) + sixth + 6 * shift) % 6
    return high - spread * torch.minimum(k, 4 - k).clamp(0, 1)


def jitter(x):
    """Brightness, contrast, saturation and hue of 0.4, 0.4, 0.2 and 0.1, in random order."""
    changes = (
        lambda x: (x + uniform(x, -0.4, 0.4)).clamp(0, 1),
        lambda x: (x * uniform(x, 0.6, 1.4)).clamp(0, 1),
        lambda x: saturate(x, uniform(x, 0.8, 1.2)),
        lambda x: turn(x, uniform(x, -0.1, 0.1)),
    )
    for n in torch.randperm(4):
        x = changes[n](x)
    return x


def blur(x):
    taps = torch.exp(-0.5 * (torch.arange(-1, 2, device=x.device) / 2.0) ** 2)
    taps = (taps / taps.sum()).reshape(1, 1, 3).expand(3, 1, 3)
    x = nn.functional.conv2d(nn.functional.pad(x, (0, 0, 1, 1), mode="reflect"), taps[..., None], groups=3)
    return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 0, 0), mode="reflect"), taps[:, :, None], groups=3)


def sharpen(x):
    kernel = torch.ones(3, 1, 3, 3, device=x.device)
    kernel[:, :, 1, 1] = 5
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = nn.functional.conv2d(x, kernel / 13, groups=3).clamp(0, 1)
    return smooth + uniform(x, 0, 0.5) * (x - smooth)


def photometric(x):
    changed = sometimes(sometimes(sometimes(sometimes(x, 0.5, jitter), 0.3, grey), 0.8, blur), 0.3, sharpen)
    return SHARE * changed + (1 - SHARE) * x


def half_of_classes(label):
    """The pixels of floor(n/2) of each image's n values, and of 255 always: bool [B,1,H,W]."""
    masks = []
    for each in label:
        values = each.unique()
        chosen = values[torch.randperm(len(values), device=each.device)[: len(values) // 2]]
        masks.append(torch.isin(each, chosen) | (each == IGNORE))
    return torch.stack(masks)[:, None]


def nearest(label, size):
    rows, columns = (torch.arange(n, device=label.device) * full // n for n, full in zip(size, label.shape[1:], strict=True))
    return label[:, rows][:, :, columns]


class Features(ENet):
    """With the map before the last transposed convolution."""

    def forward(self, x):
        kept = {}
        hook = self.transposed_conv.register_forward_pre_hook(lambda module, given: kept.update(features=given[0]))
        logits = super().forward(x)
        hook.remove()
        return logits, kept["features"]


class Step:
    def __init__(self, sizes, device, layout):
        self.net, self.teacher = (Features(sizes["classes"]).to(device, memory_format=layout) for _ in range(2))
        self.teacher.load_state_dict(self.net.state_dict())
        self.teacher.eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.net.parameters(), 5e-4, fused=device == "cuda")
        self.classes, self.layout, self.half = sizes["classes"], layout, sizes["dtype"] == "bfloat16"
        self.centroids, self.count = torch.randn(sizes["classes"], 16, device=device), 0

    def follow(self):
        """The teacher after the student, BatchNorm's statistics too."""
        keep = min(1 - 1 / (self.count + 1), DECAY)
        pairs = zip(self.teacher.state_dict().values(), self.net.state_dict().values(), strict=True)
        mine, theirs = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
        torch._foreach_lerp_(mine, theirs, 1 - keep)
        self.count += 1

    def move(self, features, logits, label):
        """The centroids after the classes of one image after another, where network and label agree on 5 pixels or more."""
        size = features.shape[2:]
        found = logits.argmax(1)
        found = torch.where(found == nearest(label, found.shape[1:]), found, IGNORE)
        hit = nn.functional.one_hot(nearest(found, size).clamp(max=self.classes), self.classes + 1)[..., : self.classes].float()
        sums = torch.einsum("bhwk,bdhw->bkd", hit, features.float())
        pixels = hit.sum((1, 2))
        for total, count in zip(sums, pixels, strict=True):
            counted = (count >= 5)[:, None]
            moved = (1 - MOMENTUM) * self.centroids + MOMENTUM * total / count.clamp(min=1)[:, None]
            self.centroids = torch.where(counted, moved, self.centroids)

    @torch.no_grad()
    def prepare(self, source, label, target, offline):
        """Views, the teacher's logits for them, the mixed image and its label."""
        masked = half_of_classes(label)
        other = torch.where(masked, photometric(source), amplitude_transfer(source, target, BETA))
        views = torch.cat([source, other])
        self.follow()
        count = len(source)
        with torch.autocast(source.device.type, torch.bfloat16, enabled=self.half):
            logits, features = self.teacher(torch.cat([views, target]).contiguous(memory_format=self.layout))
        logits, features = logits.float(), features.float()
        taught, on_target, seen = logits[: 2 * count], logits[2 * count :], features[2 * count :]
        distance = torch.cdist(seen.flatten(2).transpose(1, 2), self.centroids[None].expand(count, -1, -1))
        weights = (-distance).softmax(-1).transpose(1, 2).unflatten(2, seen.shape[2:])
        closest = nn.functional.interpolate(weights, label.shape[1:], mode="bilinear", align_corners=False).argmax(1)
        kept = torch.where(closest == offline, offline, IGNORE)
        self.move(seen, on_target, kept)
        self.move(features[count : 2 * count], taught[count:], label)
        masked = half_of_classes(label)
        mixed = torch.where(masked, source, photometric(target))
        return views, taught, mixed, torch.where(masked[:, 0], label, kept)

    def __call__(self, source, label, target, offline):
        views, taught, mixed, mixed_label = self.prepare(source, label, target, offline)
        count = len(source)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(source.device.type, torch.bfloat16, enabled=self.half):
            logits = self.net(views.contiguous(memory_format=self.layout))[0]
            on_mixed = self.net(mixed.contiguous(memory_format=self.layout))[0]
        logits, on_mixed = logits.float(), on_mixed.float()
        entropy = lambda logits, label: nn.functional.cross_entropy(logits, label, ignore_index=IGNORE, reduction="sum") / label.numel()
        soft = lambda teacher, student: nn.functional.cross_entropy(student, teacher.softmax(1))
        distilled = soft(taught[:count], logits[count:]) + REVERSE * soft(taught[count:], logits[:count])
        value = entropy(logits[:count], label) + entropy(on_mixed, mixed_label) + DISTILL * distilled
        value.backward()
        self.optimizer.step()
        return value.detach()


def prepare(sizes, sets, variant, device):
    layout = torch.contiguous_format if variant == "eager" else torch.channels_last
    step = Step(sizes, device, layout)
    weights = {key: value.clone() for key, value in step.net.state_dict().items()}
    if variant == "compiled":
        step.net.forward, step.teacher.forward = torch.compile(step.net.forward), torch.compile(step.teacher.forward)
    image = lambda x: (torch.from_numpy(x).to(device).permute(0, 3, 1, 2) / 255).contiguous()
    label = lambda x: torch.from_numpy(x).to(device).long()
    placed = []
    for each in sets:
        source, target = ((image(each[f"{role}_image"]), label(each[f"{role}_label"])) for role in ("source", "target"))
        placed.append((*source, *target))

    def out():
        step.net.eval()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=step.half):
            logits = step.net(placed[0][0].contiguous(memory_format=layout))[0]
        step.net.train()
        return {"logits": logits.float().permute(0, 2, 3, 1).cpu().numpy()}

    return Prepared(lambda n: step(*placed[n]), out, weights)
