"""A gate for retrained models: one that has lost more on earlier sets than allowed is refused, and its card says so."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pneumoscope.errors import InputError
from pneumoscope.io.files import write_json
from pneumoscope.recipes.schema import Experiment
from pneumoscope.study.folder import GUARD_FILE, read_if_there
from pneumoscope.study.scores.matrix import Matrix, read_matrix


@dataclass(frozen=True)
class Loss:
    """What a retrained stage lost on one set that an earlier stage of its lineage had learnt."""

    test: int  # number of the set
    against: str  # the earlier stage with the highest F1 on it
    lost: float  # mean F1 of that stage minus mean F1 now, over the same test slices; NaN when it cannot be measured
    low: float  # lower end of the interval over patients; NaN with fewer than two
    high: float  # upper end


@dataclass(frozen=True)
class StageVerdict:
    """One retrained stage."""

    stage: str
    accepted: bool  # whether every loss is known and below the limit
    limit: float  # the limit
    losses: tuple[Loss, ...]  # one per earlier set; none for a stage that has nothing to forget, which is accepted

    def sentence(self) -> str:
        """One line for the card."""
        word = "Accepted" if self.accepted else "Refused"
        parts = [
            f"set {x.test} not measurable" if math.isnan(x.lost) else f"set {x.test} {x.lost:+.3f} since {x.against}"
            for x in self.losses
        ]
        what = f"F1 lost on earlier sets: {', '.join(parts)}" if parts else "no earlier set to forget"
        return f"{word} by the limit of {self.limit:g} on forgetting: {what}."


@dataclass(frozen=True)
class Verdict:
    """The verdicts on all retrained stages of a study, in the order of the chain."""

    limit: float
    stages: tuple[StageVerdict, ...]

    @property
    def accepted(self) -> bool:
        """Whether every retrained stage is."""
        return all(stage.accepted for stage in self.stages)

    @property
    def refused(self) -> list[str]:
        """Names of the stages that are not."""
        return [stage.stage for stage in self.stages if not stage.accepted]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for guard.json."""
        return {
            "limit": self.limit,
            "accepted": self.accepted,
            "stages": [{**asdict(s), "sentence": s.sentence()} for s in self.stages],
        }


def require_limit(limit: float) -> None:
    """Refuse a limit outside [0, 1] (InputError); called before hours of training as well."""
    if not 0 <= limit <= 1:
        raise InputError(f"the limit on forgetting is a loss of F1 from 0 to 1, got {limit}")


def judge(matrix: Matrix, limit: float) -> Verdict:
    """Accept every retrained stage whose forgetting is below `limit` on each set learnt before; refuse the others.

    Forgetting is that of `forgetting.csv`: best mean F1 of an earlier stage minus the mean F1 now. The mean decides,
    the interval is given. What cannot be measured is refused: a gate that saw nothing must not open.

    Args:
        matrix: the scored study.
        limit: F1 that may be lost, from 0 to 1.

    Raises:
        InputError: a limit outside [0, 1].
    """
    require_limit(limit)
    lost: dict[str, list[Loss]] = {}
    for row in matrix.differences():
        if row["kind"] == "loss" and row["measure"] == "f1":
            loss = Loss(row["test"], row["against"], -row["mean"], -row["high"], -row["low"])
            lost.setdefault(row["stage"], []).append(loss)
    retrained = [stage.name for stage in matrix.experiment.stages.chain if stage.start is not None]
    return Verdict(
        limit,
        tuple(
            StageVerdict(name, all(x.lost < limit for x in lost.get(name, [])), limit, tuple(lost.get(name, [])))
            for name in retrained
        ),
    )


def guard_study(folder: str | Path, experiment: Experiment, limit: float) -> Verdict:
    """Judge a finished study; write `guard.json` and the verdict into the cards of its retrained stages.

    Raises:
        InputError: as `judge`, and for a study that has not been scored.
    """
    verdict = judge(read_matrix(folder, experiment), limit)
    for stage in verdict.stages:
        _write_into_card(Path(folder) / "stages" / stage.stage, stage)
    write_json(Path(folder) / GUARD_FILE, verdict.as_dict())
    return verdict


def renew_verdict(folder: Path, experiment: Experiment) -> None:
    """Judge again, by the same limit, where an earlier run of the study left a verdict: its scores may have changed."""
    limit = read_if_there(folder / GUARD_FILE).get("limit")
    if isinstance(limit, (int, float)) and 0 <= limit <= 1:
        guard_study(folder, experiment, float(limit))


def _write_into_card(folder: Path, stage: StageVerdict) -> None:
    from pneumoscope.models.cards import CARD_FILE, read_card, write_card

    if not (folder / CARD_FILE).is_file():
        return  # a threshold is no model: its verdict stands in guard.json
    card = read_card(folder)
    limits = card.get("limits", "")
    before = card.get("guard", {}).get("sentence", "")
    rest = limits.removeprefix(before).strip()
    guard = {"accepted": stage.accepted, "limit": stage.limit, "sentence": stage.sentence()}
    losses = [asdict(loss) for loss in stage.losses]
    limited = f"{guard['sentence']} {rest}".strip()
    write_card(folder, {**card, "limits": limited, "guard": {**guard, "lost": losses}})
