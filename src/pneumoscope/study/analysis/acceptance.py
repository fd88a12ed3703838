"""A gate for retrained models: one that has lost more on earlier sets than allowed is refused, and its card says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumoscope.errors import InputError
from pneumoscope.io.files import write_json
from pneumoscope.models.cards import CARD_FILE, read_card, write_card
from pneumoscope.recipes.schema import Experiment
from pneumoscope.study.folder import GUARD_FILE, read_if_there
from pneumoscope.study.scores.matrix import Matrix, read_matrix


def require_limit(limit: float) -> None:
    """Refuse a limit outside [0, 1] (InputError); called before hours of training as well."""
    if not 0 <= limit <= 1:
        raise InputError(f"the limit on forgetting is a loss of F1 from 0 to 1, got {limit}")


def judge(matrix: Matrix, limit: float) -> dict[str, Any]:
    """Accept every retrained stage whose forgetting is below `limit` on each set learnt before; refuse the others.

    Forgetting is that of `forgetting.csv`: best mean F1 of an earlier stage minus the mean F1 now. The mean decides,
    the interval is given. What cannot be measured is refused: a gate that saw nothing must not open.

    Returns:
        ``limit, accepted, stages`` with, in the order of the chain, ``stage, accepted, limit, losses, sentence``. A
        loss is ``test`` (set), ``against`` (the earlier stage with the highest F1 on it), ``lost`` (mean; NaN when it
        cannot be measured), ``low`` and ``high``; a stage that has nothing to forget has none and is accepted.

    Raises:
        InputError: a limit outside [0, 1].
    """
    require_limit(limit)
    chain = matrix.experiment.stages.chain
    lost: dict[str, list[dict[str, Any]]] = {stage.name: [] for stage in chain if stage.start is not None}
    for row in matrix.differences():
        if row["kind"] == "loss" and row["measure"] == "f1":
            ends = {"lost": -row["mean"], "low": -row["high"], "high": -row["low"]}
            lost[row["stage"]].append({"test": row["test"], "against": row["against"], **ends})
    stages = []
    for name, losses in lost.items():
        accepted = all(loss["lost"] < limit for loss in losses)
        verdict = {"stage": name, "accepted": accepted, "limit": limit, "losses": losses}
        stages.append({**verdict, "sentence": _sentence(accepted, limit, losses)})
    return {"limit": limit, "accepted": all(stage["accepted"] for stage in stages), "stages": stages}


def _sentence(accepted: bool, limit: float, losses: list[dict[str, Any]]) -> str:
    """One line for the card."""
    parts = [
        f"set {x['test']} not measurable" if math.isnan(x["lost"]) else
        f"set {x['test']} {x['lost']:+.3f} since {x['against']}"
        for x in losses
    ]  # fmt: skip
    what = f"F1 lost on earlier sets: {', '.join(parts)}" if parts else "no earlier set to forget"
    return f"{'Accepted' if accepted else 'Refused'} by the limit of {limit:g} on forgetting: {what}."


def guard_study(folder: str | Path, experiment: Experiment, limit: float) -> dict[str, Any]:
    """Judge a finished study; write `guard.json` and the verdict into the cards of its retrained stages.

    Raises:
        InputError: as `judge`, and for a study that has not been scored.
    """
    verdict = judge(read_matrix(folder, experiment), limit)
    for stage in verdict["stages"]:
        _write_into_card(Path(folder) / "stages" / stage["stage"], stage)
    write_json(Path(folder) / GUARD_FILE, verdict)
    return verdict


def renew_verdict(folder: Path, experiment: Experiment) -> None:
    """Judge again, by the same limit, where an earlier run of the study left a verdict: its scores may have changed."""
    limit = read_if_there(folder / GUARD_FILE).get("limit")
    if isinstance(limit, (int, float)) and 0 <= limit <= 1:
        guard_study(folder, experiment, float(limit))


def _write_into_card(folder: Path, stage: Mapping[str, Any]) -> None:
    if not (folder / CARD_FILE).is_file():
        return  # a threshold is no model: its verdict stands in guard.json
    card = read_card(folder)
    before = card.get("guard", {}).get("sentence", "")
    rest = card.get("limits", "").removeprefix(before).strip()
    guard = {name: stage[name] for name in ("accepted", "limit", "sentence")}
    limited = f"{guard['sentence']} {rest}".strip()
    write_card(folder, {**card, "limits": limited, "guard": {**guard, "lost": stage["losses"]}})
