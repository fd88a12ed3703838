"""Normalisation per site: statistics taken again on a site's own pictures, and the layers that hold them.

AdaBN: Li et al. 2016, Revisiting Batch Normalization For Practical Domain Adaptation, arXiv 1603.04779: weights are
shared, means and variances are the site's. Karani et al. 2018, A Lifelong Learning Approach to Brain MR Segmentation
Across Scanners and Protocols, MICCAI, arXiv 1805.10170, also trains scale and offset per site and nothing else: so an
earlier site, shown its own set of them, gets exactly the answers it had.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NORMS = (nn.BatchNorm2d,)


def has_statistics(model: nn.Module) -> bool:
    """Whether the network holds statistics at all; one with instance or no normalisation does not."""
    return any(isinstance(module, NORMS) for module in model.modules())


def all_but_normalisation(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules with weights of their own that are no normalisation."""
    return tuple(
        name
        for name, module in model.named_modules()
        if not isinstance(module, NORMS) and any(True for _ in module.parameters(recurse=False))
    )


@torch.no_grad()
def take_statistics(model: nn.Module, x: Tensor, *, batch_size: int = 16) -> None:
    """Replace every running mean and variance by those of the pictures `x` (n, c, h, w), as the mean over batches.

    Labels are not needed. Nothing else in the network changes; it is left in eval mode.
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a plain mean over the batches
        module.train()
    for start in range(0, len(x), batch_size):
        if len(x) - start > 1 or start == 0:  # a last batch of one would weigh as much as a full one
            model(x[start : start + batch_size])
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    model.eval()
