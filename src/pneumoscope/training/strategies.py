"""Ways to learn a new set without losing the earlier ones, each with its source.

A strategy touches a training in one of four places, and combines with those that touch others:

- what it is shown: `choose_store` (a bounded store of earlier slices; all of them is joint training);
- what it is asked: penalties (elastic weight consolidation, learning without forgetting), added to the task's loss in
  training; validation measures the task itself;
- what may move: `TrainConfig.frozen` (the encoder, or `all_but_normalisation`);
- what is kept of it: `best_mix` (a mix of the weights before and after), `take_statistics` (normalisation per site) and
  `Selector` (the network of every site, picked by how the scan looks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pneumoscope.errors import InputError
from pneumoscope.training.data import Batch, BatchSource
from pneumoscope.training.losses import cross_entropy
from pneumoscope.training.tasks import Task

Penalty = Callable[[Tensor, Batch], Tensor]
"""A scalar to be added to the loss of a training step, from the network's logits and the batch they answer."""


@dataclass(frozen=True)
class PenalisedTask:
    """A task whose training loss carries penalties; validation loss and scores are the task's own."""

    task: Task  # the task itself
    penalties: tuple[Penalty, ...] = field(repr=False)  # the terms
    note: str  # names the penalties and their numbers; a run is resumed only with the same note

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """See `Task.loss`."""
        loss = self.task.loss(output, batch)
        if torch.is_grad_enabled():
            for penalty in self.penalties:
                loss = loss + penalty(output, batch)
        return loss

    def counts(self, output: Tensor, batch: Batch) -> Tensor:
        """See `Task.counts`."""
        return self.task.counts(output, batch)

    def scores(self, counts: Tensor) -> Mapping[str, float]:
        """See `Task.scores`."""
        return self.task.scores(counts)


# -- elastic weight consolidation ------------------------------------------------------------------------------


def fisher_diagonal(model: nn.Module, source: BatchSource, rows: np.ndarray) -> dict[str, Tensor]:
    """How much each weight mattered: mean squared gradient of the cross-entropy, slice by slice, scaled to a sum of 1.

    Kirkpatrick et al. 2017, Overcoming catastrophic forgetting in neural networks, PNAS 114, 3521-3526, section 2.1:
    the diagonal of the Fisher information, here with the drawn labels (the empirical Fisher). The scaling is ours: it
    makes one weight of the penalty serve networks and pictures of any size. A network that is never wrong gives zeros.

    Args:
        model: as it was after training on the earlier set; runs in eval mode, its weights stay.
        source: that set's training slices.
    """
    device = next(model.parameters()).device
    wanted = dict(model.named_parameters())
    had = {name: p.requires_grad for name, p in wanted.items()}
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in wanted.items()}
    for parameter in wanted.values():
        parameter.requires_grad_(True)
    for row in rows:
        batch = source.batch(np.asarray([row], dtype=np.int64), None)
        loss = cross_entropy(model(batch.x.to(device)), batch.y.to(device))
        for (name, _), gradient in zip(wanted.items(), torch.autograd.grad(loss, list(wanted.values())), strict=True):
            total[name] += gradient.detach() ** 2
    for name, parameter in wanted.items():
        parameter.requires_grad_(had[name])
    whole = sum(float(value.sum()) for value in total.values())
    return {name: value / whole if whole else value for name, value in total.items()}


@dataclass(frozen=True, eq=False)
class WeightConsolidation:
    """Elastic weight consolidation: weights that mattered for an earlier set are drawn back to where they were.

    weight / 2 * sum_i F_i (w_i - w*_i)^2, Kirkpatrick et al. 2017, equation 3; one such term per earlier set.
    """

    model: nn.Module  # the network being trained
    fisher: Mapping[str, Tensor]  # of the earlier set, see `fisher_diagonal`
    anchor: Mapping[str, Tensor]  # the weights as they were then
    weight: float  # lambda

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """See `Penalty`."""
        total = output.new_zeros(())
        for name, parameter in self.model.named_parameters():
            fisher, anchor = self.fisher[name].to(parameter.device), self.anchor[name].to(parameter.device)
            total = total + (fisher * (parameter - anchor) ** 2).sum()
        return self.weight / 2 * total


# -- learning without forgetting -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Distillation:
    """Learning without forgetting: on the new images, answer as the network before did.

    Li and Hoiem 2016, Learning without Forgetting, arXiv 1606.09282, equations 2 and 3, for one output per pixel:
    cross-entropy between both answers softened by a temperature T, times T^2 so that gradients keep their size.
    It is smallest, and its gradient 0, where both networks agree.
    """

    teacher: nn.Module  # the network before; it does not learn
    weight: float  # lambda_o
    temperature: float  # T

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """See `Penalty`."""
        self.teacher.to(output.device).eval()
        with torch.no_grad():
            before = torch.sigmoid(self.teacher(batch.x) / self.temperature)
        softened = F.binary_cross_entropy_with_logits(output / self.temperature, before)
        return self.weight * self.temperature**2 * softened


def mix_weights(before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The weights at `share` of the way; counters (whole numbers) are those of `after`.

    WiSE-FT: Wortsman et al. 2022, Robust fine-tuning of zero-shot models, CVPR, arXiv 2109.01903, section 3:
    (1 - share) * before + share * after, for every weight and running statistic.
    """
    return {
        name: torch.lerp(before[name].to(value), value, share) if value.is_floating_point() else value.clone()
        for name, value in after.items()
    }


def best_mix(
    model: nn.Module,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    shares: Sequence[float],
    score: Callable[[nn.Module], float],
) -> tuple[float, dict[float, float]]:
    """Load the best of several mixes into `model`; ties go to the larger share of the new weights.

    Args:
        model: is left holding the best mix, in eval mode.
        shares: of the new weights to try.
        score: larger is better; must not use test patients.

    Returns:
        The share taken, and the score of every share tried.
    """
    tried = {}
    for share in shares:
        model.load_state_dict(mix_weights(before, after, share))
        tried[share] = score(model.eval())
    best = max(sorted(tried, reverse=True), key=lambda share: tried[share])
    model.load_state_dict(mix_weights(before, after, best))
    model.eval()
    return best, tried


NORMS = (nn.BatchNorm2d,)


def has_statistics(model: nn.Module) -> bool:
    """Whether the network holds statistics at all; one with instance or no normalisation does not."""
    return any(isinstance(module, NORMS) for module in model.modules())


def all_but_normalisation(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules with weights of their own that are no normalisation.

    Karani et al. 2018, A Lifelong Learning Approach to Brain MR Segmentation Across Scanners and Protocols, MICCAI,
    arXiv 1805.10170, trains scale and offset per site and nothing else: so an earlier site, shown its own set of them,
    gets exactly the answers it had.
    """
    return tuple(
        name
        for name, module in model.named_modules()
        if not isinstance(module, NORMS) and any(True for _ in module.parameters(recurse=False))
    )


@torch.no_grad()
def take_statistics(model: nn.Module, x: Tensor, *, batch_size: int = 16) -> None:
    """Replace every running mean and variance by those of the pictures `x` (n, c, h, w), as the mean over batches.

    AdaBN: Li et al. 2016, Revisiting Batch Normalization For Practical Domain Adaptation, arXiv 1603.04779: weights are
    shared, means and variances are the site's.

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


def choose_store(patients: Sequence[str], infected: Sequence[bool], n: int) -> NDArray[np.intp]:
    """Rows to keep, ascending: at most `n`, spread evenly over patients, and evenly along each patient's slices.

    Slices with infiltrate are kept first; those without fill what is left. A rule, not a draw. Rehearsal: Robins 1995,
    Catastrophic forgetting, rehearsal and pseudorehearsal, Connection Science 7, 123-146; Chaudhry et al. 2019, On Tiny
    Episodic Memories in Continual Learning, arXiv 1902.10486, for how little is enough.

    Args:
        patients: of each slice, slices of a scan in their order.
        infected: whether the slice holds infiltrate.
        n: slices to keep; all when there are no more.
    """
    names, flags = np.asarray(patients, dtype=str), np.asarray(infected, dtype=bool)
    kept = _spread(names, np.flatnonzero(flags), n)
    rest = _spread(names, np.flatnonzero(~flags), n - len(kept))
    return np.sort(np.concatenate([kept, rest])).astype(np.intp)


def _spread(names: NDArray[np.str_], rows: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """At most n of the rows: patients in turn, each giving rows evenly spaced from its first to its last."""
    owned = {name: rows[names[rows] == name] for name in dict.fromkeys(names[rows])}
    quota = dict.fromkeys(owned, 0)
    left = max(0, min(n, len(rows)))
    while left:
        for name in owned:
            if left and quota[name] < len(owned[name]):
                quota[name] += 1
                left -= 1
    picked = [owned[name][_evenly(len(owned[name]), quota[name])] for name in owned]
    return np.concatenate(picked) if picked else np.zeros(0, np.intp)


def _evenly(n: int, most: int) -> NDArray[np.intp]:
    """Indices of `most` of n things: the middles of as many equal stretches."""
    return np.floor((np.arange(most) + 0.5) * n / max(most, 1)).astype(np.intp)


def equal_shares(earlier: int, earlier_share: float | None) -> list[float]:
    """Shares of an epoch for the new set (first) and each earlier one; None: all alike."""
    share = earlier / (earlier + 1) if earlier_share is None else earlier_share
    return [1 - share, *[share / earlier] * earlier] if earlier else [1.0]


QUANTILES = tuple(np.linspace(0.05, 0.95, 10))  # Of the grey values of a slice

SHRINKAGE = 0.1
"""Share of the covariance that is replaced by its diagonal; 25 slices cannot tell twelve variances and their ties."""


def features(images: NDArray[np.generic]) -> NDArray[np.float64]:
    """(n, 12) of pictures (n, c, h, w): quantiles of the first channel, and the mean step along rows and columns."""
    if not len(images):
        return np.zeros((0, len(QUANTILES) + 2))
    grey = images[:, 0].astype(np.float64)
    if images.dtype == np.uint8:
        grey /= 255
    flat = grey.reshape(len(grey), -1)
    levels = np.quantile(flat, QUANTILES, axis=1).T
    steps = [np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    return np.column_stack([levels, *steps])


@dataclass(frozen=True, eq=False)
class Selector:
    """Says which site a scan looks like: grey values and grain of its slices against those of the training slices.

    Ours; in the manner of an expert gate (Aljundi et al. 2017, Expert Gate, CVPR, arXiv 1611.06194), with a linear
    discriminant instead of autoencoders: it needs a mean per site and one covariance, and keeps no picture.
    """

    sites: tuple[int, ...]  # their numbers
    means: NDArray[np.float64]  # (sites, features)
    precision: NDArray[np.float64]  # (features, features), the inverse of the covariance within sites

    @staticmethod
    def fit(images: Mapping[int, NDArray[np.generic]]) -> Selector:
        """Learn from training slices (n, c, h, w) per site; every site weighs the same.

        Raises:
            InputError: a site without slices.
        """
        values = {site: features(stack) for site, stack in sorted(images.items())}
        empty = [site for site, found in values.items() if not len(found)]
        if empty or not values:
            raise InputError(f"the selector needs slices of every site; none of {empty or 'any'}")
        means = np.stack([found.mean(axis=0) for found in values.values()])
        within = [np.cov(found.T, bias=True) for found in values.values()]
        covariance = np.mean(within, axis=0)
        spread = np.diag(np.diag(covariance) + 1e-6)
        covariance = (1 - SHRINKAGE) * (covariance + 1e-6 * np.eye(len(covariance))) + SHRINKAGE * spread
        return Selector(tuple(values), means, np.linalg.inv(covariance))

    def distances(self, images: NDArray[np.generic]) -> NDArray[np.float64]:
        """(sites) squared Mahalanobis distance of a scan's slices from each site, averaged over the slices."""
        off = features(images)[:, None] - self.means
        return np.asarray(np.einsum("nsf,fg,nsg->ns", off, self.precision, off).mean(axis=0))

    def choose(self, images: NDArray[np.generic]) -> int:
        """The site that the slices (n, c, h, w) of one scan look most like; n >= 1."""
        return self.sites[int(np.argmin(self.distances(images)))]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"sites": list(self.sites), "means": self.means.tolist(), "precision": self.precision.tolist()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Selector:
        """Read what `as_dict` gave."""
        return Selector(tuple(values["sites"]), np.array(values["means"]), np.array(values["precision"]))
