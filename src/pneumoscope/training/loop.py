"""The one training loop, to be read in one sitting.

Any step can be done again: the order of an epoch, the augmentation and the dropout of a step are functions of
(seed, epoch, step), so a checkpoint needs no generator state, and a run killed at any moment and resumed writes the
same bytes as an undisturbed one (CPU, same thread count). "Best" is chosen on validation and is a copy.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pneumoscope.errors import CheckpointError, InputError, NonFiniteLossError
from pneumoscope.io.files import clear_temporary, write_csv
from pneumoscope.processes import signals_held
from pneumoscope.progress import NOTE, Progress, silent
from pneumoscope.training import devices
from pneumoscope.training.checkpoint import load_checkpoint, save_checkpoint
from pneumoscope.training.config import TrainConfig, cycle, plateaus, rate_at
from pneumoscope.training.data import Batch, BatchSource
from pneumoscope.training.devices import count_of, make_fabric
from pneumoscope.training.tasks import Task, train_mode

__all__ = ["FitResult", "TrainConfig", "cycle", "fit", "plateaus"]


@dataclass(frozen=True)
class FitResult:
    """What came of a training."""

    best_epoch: int  # 1-based epoch whose weights the model now holds; with ``keep=last`` the last
    best_value: float  # its monitored value
    epochs_run: int  # epochs done, over all resumed parts
    stopped_by: str  # ``max_epochs``, ``patience`` or ``max_minutes``
    history: list[dict[str, float]]  # a row per epoch: epoch, learning_rate, train_loss, val_loss, val_<score>..
    notes: tuple[str, ...]  # what a reader should know, e.g. that a damaged checkpoint was skipped.
    seconds: float  # wall time of this process


@dataclass
class _State:
    """Where the run stands; everything here goes into the checkpoint."""

    epoch: int = 0
    step: int = 0  # within the epoch
    loss_sum: float = 0.0
    seen: int = 0
    best_epoch: int = 0
    best_value: float = math.nan
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    model: nn.Module,
    task: Task,
    train: BatchSource,
    val: BatchSource,
    config: TrainConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    progress: Progress = silent,
) -> FitResult:
    """Train `model` in place; when this returns it holds the best weights, in eval mode.

    Writes `history.csv`, `last.ckpt` and `previous.ckpt` into `folder`. SIGINT and SIGTERM take effect after the
    current step, once a checkpoint is written.

    Raises:
        NonFiniteLossError: loss or gradients, before the optimiser moves; the last checkpoint stays good.
        CheckpointError: `resume` with other settings or data than the run was started with, or damaged files only.
    """
    started = time.perf_counter()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rank, world = devices.current()
    if not rank:
        clear_temporary(folder)
    if world == 1 and (count := count_of(config.device)[1]) > 1:
        result: FitResult = devices.fit_on(count, progress, fit, model, task, train, val, config, folder, resume)
        kept = load_checkpoint(folder)
        assert kept is not None
        model.load_state_dict(kept.state["best"])
        model.eval()
        return result
    run = _Run(model, task, train, val, config, folder)
    notes: tuple[str, ...] = ()
    if resume:
        with devices.first_alone():
            notes = run.restore(progress)
    with signals_held() as run.interrupted:
        stopped_by = run.advance(progress, started)
    run.model.load_state_dict(run.best)
    run.model.eval()
    state = run.state
    seconds = time.perf_counter() - started
    return FitResult(
        state.best_epoch, state.best_value, state.epoch, stopped_by, list(state.history), tuple(notes), seconds
    )


def stable_seed(*numbers: int) -> int:
    """A seed from 0 to 2**63 - 1 out of several numbers, the same with every Python on every machine."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8]) >> 1


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


class _Run:
    """The loop's moving parts: model, average, optimiser, position."""

    def __init__(
        self, model: nn.Module, task: Task, train: BatchSource, val: BatchSource, config: TrainConfig, folder: Path
    ) -> None:
        self.model, self.task, self.train, self.val = model, task, train, val
        self.config, self.folder, self.state = config, folder, _State()
        self.fabric: Fabric = make_fabric(config.device, config.precision)
        self.fabric.launch()
        self.rank, self.world = devices.current()
        flat = not any(isinstance(part, nn.Conv3d) for part in model.modules())
        model.to(self.fabric.device, memory_format=torch.channels_last if flat else torch.preserve_format)  # type: ignore[call-overload]
        if self.world > 1:
            devices.join_batch_norms(model)
        self.frozen = frozenset(config.frozen)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(name.startswith(f + ".") for f in self.frozen))
        kind = torch.optim.Adam if config.optimiser == "adam" else torch.optim.AdamW
        self.moving = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        optimiser = kind(
            [weight for _, weight in self.moving], lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.wrapped, self.optimiser = self.fabric.setup(model, optimiser)
        self.average = deepcopy(model).eval() if config.ema else None
        self.best: dict[str, Tensor] = {}
        self.steps = math.ceil(len(train) / config.batch_size)
        self.interrupted: Callable[[], bool] = lambda: False

    def advance(self, progress: Progress, started: float) -> str:
        """Train to the end, or until interrupted; why it ended."""
        config, stopped_by = self.config, self.finished()
        while not stopped_by:
            self.train_epoch(progress)
            scores = None if self.stopping() else self.validate()
            if scores is None:
                self.save()
                return "interrupted"
            self.close_epoch(scores)
            row = self.state.history[-1]
            note = f"val loss {row['val_loss']:.4f}" + "".join(
                f", {k[4:]} {v:.3f}" for k, v in row.items() if k.startswith("val_") and k != "val_loss"
            )
            progress(self.folder.name, self.state.epoch, config.max_epochs, note)
            out_of_time = config.max_minutes is not None and time.perf_counter() - started > 60 * config.max_minutes
            stopped_by = self.finished() or ("max_minutes" if devices.any_of(out_of_time) else "")
        return stopped_by

    def stopping(self) -> bool:
        """Whether a signal has come, to this process or to one that trains with it."""
        return devices.any_of(self.interrupted())

    # -- one epoch ---------------------------------------------------------------------------------------------

    def train_epoch(self, progress: Progress) -> None:
        config, state = self.config, self.state
        wrappers = ("", "_forward_module.", "_forward_module.module.")
        train_mode(self.wrapped, frozenset(wrapper + name for wrapper in wrappers for name in self.frozen))
        order = np.random.default_rng([config.seed, state.epoch, 0]).permutation(len(self.train))
        while state.step < self.steps and not self.stopping():
            rows = order[state.step * config.batch_size : (state.step + 1) * config.batch_size]
            batch = self.train.batch(rows, np.random.default_rng([config.seed, state.epoch, 1, state.step]))
            torch.manual_seed(stable_seed(config.seed, state.epoch, state.step))
            self._step(self._to_device(batch), len(rows))
            state.step += 1
            if config.checkpoint_every_steps and state.step % config.checkpoint_every_steps == 0:
                self.save()
            progress(f"{self.folder.name} epoch {state.epoch + 1}", state.step, self.steps)

    def _step(self, batch: Batch, size: int) -> None:
        config, state = self.config, self.state
        rate = self._learning_rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self.task.loss(devices.output(self.wrapped, batch.x), batch)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at epoch {state.epoch + 1}, step {state.step + 1}; nothing was updated. "
                f"Check {_some(batch.names)}, or lower the learning rate"
            )
        self.optimiser.zero_grad()
        self.fabric.backward(loss)
        self._require_finite_gradients(batch)
        if config.clip_norm:
            self.fabric.clip_gradients(self.wrapped, self.optimiser, max_norm=config.clip_norm)
        self.optimiser.step()
        if self.average is not None:
            self._update_average(self.average)
        state.loss_sum += float(loss.detach()) * size
        state.seen += size

    def _require_finite_gradients(self, batch: Batch) -> None:
        """A broken kernel gives a good loss and bad gradients: their common norm is checked in every step.

        It costs 0.02 to 0.2 % of a step (one core; 4 ms for 22.6 million weights).
        """
        parts = [(name, weight.grad) for name, weight in self.moving if weight.grad is not None]
        if not parts or torch.isfinite(torch.nn.utils.get_total_norm([grad for _, grad in parts])):
            return
        bad = [name for name, grad in reversed(parts) if not torch.isfinite(grad).all()]  # from the output backwards
        if not bad:
            return  # large, but finite
        others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        low = "bf16" in str(self.fabric.strategy.precision.precision)
        state = self.state
        raise NonFiniteLossError(
            f"the gradient of {bad[0]}{others} is not finite at epoch {state.epoch + 1}, step {state.step + 1}; "
            f"nothing was updated. {'Use --precision fp32' if low else 'Clip gradients'}, or lower the learning rate, "
            f"or check {_some(batch.names)}"
        )

    @torch.no_grad()
    def _update_average(self, average: nn.Module) -> None:
        done = self.state.epoch * self.steps + self.state.step
        decay = min(self.config.ema, (1 + done) / (10 + done))  # young averages forget their start
        current = self.model.state_dict()
        for name, value in average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], 1 - decay)
            else:
                value.copy_(current[name])

    def _learning_rate(self) -> float:
        done = self.state.epoch * self.steps + self.state.step
        return rate_at(self.config, done, self.steps, self.state.history)

    def close_epoch(self, scores: Mapping[str, float]) -> None:
        """Remember the best, write history and checkpoint."""
        state = self.state
        row = {"epoch": state.epoch + 1, "learning_rate": self._learning_rate()}
        row |= {"train_loss": state.loss_sum / state.seen, **scores}
        state.history.append(row)
        value = row.get(self.config.monitor)
        if value is None:
            raise InputError(f"monitor {self.config.monitor!r} is not measured; known are {', '.join(scores)}")
        down = self.config.monitor.endswith("_loss")
        better = not self.best or (value < state.best_value if down else value > state.best_value)
        if better or self.config.keep == "last":
            state.best_epoch, state.best_value = state.epoch + 1, value
            source = self.average if self.average is not None else self.model
            self.best = {n: t.detach().clone() for n, t in source.state_dict().items()}
        state.epoch, state.step, state.loss_sum, state.seen = state.epoch + 1, 0, 0.0, 0
        self.save()
        self._write_history()

    @torch.no_grad()
    def validate(self) -> dict[str, float] | None:
        """Loss and scores of the weights that would be kept, over the whole validation set; None when interrupted."""
        model = self.average if self.average is not None else self.model if self.world > 1 else self.wrapped
        model.eval()
        total, counts, size = 0.0, None, self.config.batch_size
        for start in range(0, len(self.val), size * self.world):
            if self.stopping():
                return None
            first = start + size * self.rank
            rows = np.arange(first, min(first + size, len(self.val)))
            if not len(rows):
                continue
            batch = self._to_device(self.val.batch(rows, None))
            with self.fabric.autocast():
                output = model(batch.x)
            total += float(self.task.loss(output.float(), batch)) * len(rows)
            here = self.task.counts(output.float(), batch)
            counts = here if counts is None else counts + here
        total, counts = devices.total_of(total, counts)
        assert counts is not None  # a source is never empty
        scores = self.task.scores(counts)
        return {"val_loss": total / len(self.val), **{f"val_{name}": value for name, value in scores.items()}}

    def finished(self) -> str:
        """Why the run is over, or an empty string."""
        config, state = self.config, self.state
        if config.patience is not None and state.epoch - state.best_epoch >= config.patience and state.epoch > 0:
            return "patience"
        return "max_epochs" if state.epoch >= config.max_epochs else ""

    # -- files -------------------------------------------------------------------------------------------------

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a resume: settings (but time limits) and data."""
        sources = {"train": self.train.content, "val": self.val.content}
        return {**self.config.identity(), **sources, "task": repr(self.task)}

    def save(self) -> None:
        """Write the checkpoint; the first of several processes does."""
        if self.rank:
            return
        average = self.average.state_dict() if self.average is not None else {}
        save_checkpoint(
            self.folder,
            {
                "identity": self.identity,
                "state": asdict(self.state),
                "model": self.model.state_dict(),
                "average": average,
                "best": self.best,
                "optimiser": self.optimiser.optimizer.state_dict(),
            },
        )

    def restore(self, progress: Progress = silent) -> tuple[str, ...]:
        """Go back to the checkpoint; what there is to say about it. A fall back to an older one is reported at once."""
        loaded = load_checkpoint(self.folder)
        if loaded is None:
            return (f"{self.folder.name}: no checkpoint had been written yet; started at the first epoch",)
        try:
            self._take(loaded.state)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as problem:
            raise CheckpointError(
                f"a checkpoint is whole and holds no state of this training ({str(problem)[:200]}); start again with "
                "--overwrite",
                path=self.folder,
            ) from problem
        self._write_history()
        if not loaded.note:
            return ()
        note = f"{self.folder.name}: {loaded.note}"
        progress(NOTE, 1, 1, note)
        return (note,)

    def _take(self, saved: Mapping[str, Any]) -> None:
        """Put the state of a checkpoint in place."""
        before, here = saved["identity"], self.identity
        changed = [f"{k} was {before.get(k)!r}, is {v!r}" for k, v in here.items() if before.get(k) != v]
        if changed:
            raise CheckpointError(
                f"the run was started with other settings or data: {'; '.join(changed)}; "
                "use the old ones, or start again with --overwrite",
                path=self.folder,
            )
        self.model.load_state_dict(saved["model"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.best = dict(saved["best"])
        self.optimiser.optimizer.load_state_dict(saved["optimiser"])
        self.state = _State(**saved["state"])

    def _write_history(self) -> None:
        rows = self.state.history
        if rows and not self.rank:
            cells = [[f"{value:.9g}" for value in row.values()] for row in rows]
            write_csv(self.folder / "history.csv", list(rows[0]), cells)

    def _to_device(self, batch: Batch) -> Batch:
        layout = torch.channels_last if batch.x.ndim == 4 else torch.preserve_format
        x = batch.x.to(self.fabric.device, memory_format=layout)
        return Batch(x, batch.y.to(self.fabric.device), batch.names)
