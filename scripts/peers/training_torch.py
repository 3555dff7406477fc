"""What the torch training steps share: uint8 batches in, one optimizer step out; no peer by itself.

The images go to the device before, as segjax's do; turning them into floats is part of the step on both sides.
"""

import numpy as np
import torch
from serve import Prepared


def prepare(net, optimizer, sets, variant, device, dtype, *, image, loss) -> Prepared:
    """image: uint8 NHWC -> the network's float NCHW input. loss: (the network's output, label int64) -> scalar."""
    net = net.to(device)
    layout = torch.contiguous_format if variant == "eager" else torch.channels_last
    net = net.to(memory_format=layout)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = optimizer(net.parameters())
    placed = [(torch.from_numpy(s["source_image"]).to(device), torch.from_numpy(s["source_label"]).to(device)) for s in sets]
    half = dtype == "bfloat16"

    def ready(pixels):
        return image(pixels.permute(0, 3, 1, 2).float()).contiguous(memory_format=layout)

    def objective(pixels, label):
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logits = net(ready(pixels))
        return loss(logits.float(), label.long())

    value_of = torch.compile(objective) if variant == "compiled" else objective

    def call(n):
        optimizer.zero_grad(set_to_none=True)
        value = value_of(*placed[n])
        value.backward()
        optimizer.step()
        return value.detach()

    def out() -> dict[str, np.ndarray]:
        """Evaluation logits of the first set, channels last."""
        net.eval()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=half):
            logits = net(ready(placed[0][0]))
        net.train()
        return {"logits": logits.float().permute(0, 2, 3, 1).cpu().numpy()}

    return Prepared(call, out, weights)
