"""What the torch forward passes share: a module, its inputs, evaluation mode, weights in the workload's type; no peer by itself."""

import numpy as np
import torch
from serve import Prepared


def prepare(module, sizes, sets, variant, device, *, arguments, answer, prefix="", images=()) -> Prepared:
    """arguments: the inputs by name -> keyword arguments of the module. answer: its result -> the array that is compared, as segjax lays it
    out. prefix: of the weights' names. images: inputs that are NHWC there."""
    module = module.to(device).eval()
    weights = {prefix + key: value.clone() for key, value in module.state_dict().items()}
    dtype = torch.bfloat16 if sizes["dtype"] == "bfloat16" else torch.float32
    layout = torch.channels_last if variant == "channels_last" else torch.contiguous_format
    module = module.to(dtype).to(memory_format=layout)

    def placed(name, value):
        value = torch.from_numpy(value).to(device, dtype)
        return value.permute(0, 3, 1, 2).contiguous(memory_format=layout) if name in images else value

    inputs = [arguments(**{name: placed(name, value) for name, value in each.items()}) for each in sets]
    forward = torch.compile(module) if variant == "compiled" else module

    @torch.no_grad()
    def call(n):
        return forward(**inputs[n])

    def out() -> dict[str, np.ndarray]:
        return {"out": answer(call(0)).float().cpu().numpy()}

    return Prepared(call, out, weights)
