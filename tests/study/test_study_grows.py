"""A study that gets another set and another stage: what was made stands, only what is new is made."""

from dataclasses import replace

import pytest

from pneumoscope.errors import InputError
from pneumoscope.recipes.settings import revise, with_overrides
from pneumoscope.study.engine import run_study
from pneumoscope.study.folder import start


def part_of(plan, sets, stages):
    """The plan with its first sets and stages only."""
    return replace(
        plan,
        paper=(),
        data=replace(plan.data, sites=plan.data.sites[:sets]),
        stages=replace(plan.stages, chain=plan.stages.chain[:stages]),
        lung=revise(plan.lung, "our choice: the first set teaches", sites=(1,)),
    )


def test_a_new_set_and_a_new_stage_cost_their_own_cells(small, hospitals, no_figures, tmp_path):
    run_study(part_of(small, 1, 1), tmp_path, synthetic=True)
    weights = (tmp_path / "stages" / "Tr1" / "model.safetensors").read_bytes()
    seen = []
    grown = run_study(
        part_of(small, 2, 2),
        tmp_path,
        synthetic=True,
        resume=True,
        progress=lambda what, done, total, note="": seen.append((what, note)),
    )
    assert [len(grown.matrix), grown.matrix["f1"].notna().all()] == [4, True]
    assert (tmp_path / "stages" / "Tr1" / "model.safetensors").read_bytes() == weights
    assert not [what for what, _ in seen if what.startswith("Tr1 epoch")]
    scored = [(what, note.split(":")[0]) for what, note in seen if what.startswith("scoring")]
    assert scored == [("scoring Tr1", "set 2"), ("scoring Tr1_R_2", "set 1"), ("scoring Tr1_R_2", "set 2")]


def test_a_study_may_grow_but_not_shrink_or_change(small, tmp_path):
    start(part_of(small, 2, 2), tmp_path)
    start(part_of(small, 3, 3), tmp_path, resume=True)
    for other in (part_of(small, 2, 2), with_overrides(part_of(small, 3, 3), ["training.seed=5"])):
        with pytest.raises(InputError, match="other settings"):
            start(other, tmp_path, resume=True)
