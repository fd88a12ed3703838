"""Run a 2D network over slices, in batches, in the best precision the device has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import RunError
from pneumoscope.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pneumoscope.inference.engines import Engine


def predict_probability(
    model: nn.Module | Engine,
    images: NDArray[np.generic],
    *,
    batch_size: int = 8,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    mirror: bool = False,
    progress: Progress = silent,
) -> NDArray[np.float32]:
    """Sigmoid outputs (n, o, h, w) float32 of images (n, c, h, w); n = 0 gives an empty array.

    Args:
        model: a network giving logits, put into eval mode; or one in its engine, whose device and precision hold.
        images: uint8 (scaled by 1/255) or float.
        batch_size: slices at a time; results do not depend on it.
        device: see `training.devices.pick_device`.
        precision: see `training.devices.pick_precision`.
        mirror: also run the slices mirrored left to right and average, twice the time.
        progress: called per batch.

    Raises:
        RunError: the network gave NaN or infinity.
    """
    import torch

    from pneumoscope.inference.engines import Engine, TorchEngine
    from pneumoscope.training.devices import pick_device, pick_precision

    if not isinstance(model, Engine):
        model = TorchEngine(model, pick_precision(precision, pick_device(device)), device)
    engine, scale = model, np.float32(1 / 255) if images.dtype == np.uint8 else np.float32(1)

    def probability(x: Tensor) -> Tensor:
        return torch.sigmoid(torch.from_numpy(engine.logits(x.numpy())))

    parts = []
    for start in range(0, len(images), batch_size):
        x = torch.from_numpy(images[start : start + batch_size].astype(np.float32) * scale)
        p = probability(x)
        if mirror:
            p = (p + probability(x.flip(-1)).flip(-1)) / 2
        parts.append(p.numpy())
        progress("slices", min(start + batch_size, len(images)), len(images))
    if not parts:
        return np.empty((0, engine.out_channels, *images.shape[2:]), np.float32)
    out = np.concatenate(parts)
    if not np.isfinite(out).all():
        raise RunError("the network gave NaN or infinite probabilities; try --precision fp32, or verify the model")
    return out
