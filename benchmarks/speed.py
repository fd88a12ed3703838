"""Training and inference speed of the 2D U-Net against MONAI's BasicUNet of the same widths, in one run.

    python benchmarks/speed.py [--size 320] [--threads N] [--json FILE]

Both networks get the same slices, batch, optimiser and loss, in turns, best of several. BasicUNet runs as it comes
(InstanceNorm, NCHW, fp32); ours as `training.loop` runs it: channels-last, bf16 where the processor computes in it.

The processor's limit stands beside it: for each convolution a plain matrix product of its size (pixels x 9 channels in
x channels out), once for inference, three times for training (forward, backward to input and to weights).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pneumoscope.models.unet import UNet, UNetConfig
from pneumoscope.training.devices import has_fast_bf16
from pneumoscope.training.losses import cross_entropy

WIDTHS = (16, 32, 64, 128, 256)


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def monai_unet() -> nn.Module:
    from monai.networks.nets import BasicUNet

    return BasicUNet(spatial_dims=2, in_channels=4, out_channels=2, features=(*WIDTHS, WIDTHS[0]))


def timed(work: Callable[[], None], repeats: int) -> float:
    """Best wall time of `repeats` after one warm-up."""
    work()
    best = float("inf")
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return best


def measure(
    model: nn.Module, size: int, batch: int, repeats: int, *, channels_last: bool, bf16: bool
) -> dict[str, float]:
    """Slices a second in training and in inference."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    x = torch.rand(batch, 4, size, size).to(memory_format=layout)
    y = (torch.rand(batch, 2, size, size) > 0.9).float()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model(x)
        loss = cross_entropy(out.float(), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def infer() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model(x)

    model.train()
    training = batch / timed(train, repeats)
    model.eval()
    return {"train_slices_per_s": training, "infer_slices_per_s": batch / timed(infer, repeats)}


def _multiply(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.mm(a, b)


def products(model: nn.Module, size: int, batch: int, *, bf16: bool, repeats: int) -> dict[str, float]:
    """Slices a second if every convolution took as long as the matrix product of its size, and the rest no time."""
    sizes: list[tuple[int, int, int]] = []

    def note(layer: nn.Module, _: Any, out: torch.Tensor) -> None:
        assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        window = layer.kernel_size[0] * layer.kernel_size[1]
        if isinstance(layer, nn.ConvTranspose2d):  # each output pixel is made of one input pixel
            window = 1
        sizes.append((out.shape[0] * out.shape[2] * out.shape[3], window * layer.in_channels, layer.out_channels))

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.inference_mode():
        model.eval()(torch.rand(1, 4, size, size))
        for hook in hooks:
            hook.remove()
        seconds, kind = 0.0, torch.bfloat16 if bf16 else torch.float32
        for m, k, n in sizes:
            a, b = torch.rand(m * batch, k).to(kind), torch.rand(k, n).to(kind)
            seconds += timed(partial(_multiply, a, b), repeats)
    gflop = sum(2 * m * k * n for m, k, n in sizes) / 1e9
    rates = {"train_slices_per_s": batch / (3 * seconds), "infer_slices_per_s": batch / seconds}
    return {"gflop_per_slice": gflop, "gflop_per_s": gflop * batch / seconds, **rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    bf16 = has_fast_bf16(torch.device("cpu"))
    ours, theirs = UNet(UNetConfig(4, 2, WIDTHS)), monai_unet()
    common = (options.size, options.batch, options.repeats)
    result: dict[str, Any] = {
        "machine": {
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "bf16": bf16,
            "threads": options.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "size": options.size,
        "batch": options.batch,
        "pneumoscope": {
            "parameters": parameters(ours),
            **measure(ours, *common, channels_last=True, bf16=bf16),
        },
        "monai_basicunet": {
            "parameters": parameters(theirs),
            **measure(theirs, *common, channels_last=False, bf16=False),
        },
    }
    for name, lower in (("fp32", False), ("bf16", True)):
        if bf16 or not lower:
            own = measure(UNet(UNetConfig(4, 2, WIDTHS)), *common, channels_last=True, bf16=lower)
            bound = products(UNet(UNetConfig(4, 2, WIDTHS)), options.size, options.batch, bf16=lower, repeats=3)
            reached = {key.replace("slices_per_s", "reached"): own[key] / bound[key] for key in own}
            result[f"products_{name}"] = {**bound, **reached}
    result["ratio"] = {
        key: result["pneumoscope"][key] / result["monai_basicunet"][key]
        for key in ("train_slices_per_s", "infer_slices_per_s")
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
