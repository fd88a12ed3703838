import pytest

from pneumoscope.errors import InputError
from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.recipes.papers.transfer import COMPARED, transfer_slices
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.recipes.stages import CLASHES, STRATEGIES, strategy_parts
from pneumoscope.study.forecast import count_steps, leader, needs


def test_every_strategy_is_compared_and_takes_the_same_steps():
    plan = transfer_slices()
    assert {part for name in COMPARED for part in strategy_parts(name)} == set(STRATEGIES)
    budgets = {plan.stages.retrain.epoch_slices for _ in COMPARED}
    assert budgets == {plan.stages.retrain.epoch_slices}
    assert plan.stages.retrain.epoch_slices


def test_trainings_that_are_alike_are_found():
    plan = transfer_slices()
    assert leader(plan, "Tr1_R_2-averaging") == "Tr1_R_2-plain"
    assert leader(plan, "Tr1_R_2_R_3-averaging") == "Tr1_R_2_R_3-averaging"  # begins from mixed weights
    assert leader(plan, "Tr1_R_2_R_3-selector") == "Tr1_R_2_R_3-plain"
    assert leader(plan, "Tr1_R_2_R_3-adabn") == "Tr1_R_2_R_3-plain"
    assert leader(plan, "Tr1_R_2-rehearsal+averaging") == "Tr1_R_2-rehearsal"
    assert leader(plan, "Tr1_R_2-site_norm") == "Tr1_R_2-site_norm"


def test_a_stage_waits_for_its_lineage_and_for_the_training_it_shares():
    plan = transfer_slices()
    assert needs(plan, "Tr1") == []
    assert needs(plan, "Tr1_R_2_R_3-joint") == ["Tr1", "Tr1_R_2-joint"]
    assert needs(plan, "Tr1_R_2-averaging") == ["Tr1", "Tr1_R_2-plain"]
    assert needs(plan, "Tr1_R_2_R_3-selector") == [
        "Tr1", "Tr1_R_2-selector", "Tr1_R_2-plain", "Tr1_R_2_R_3-plain",
    ]  # fmt: skip
    chain = [stage.name for stage in plan.stages.chain]
    for name in chain:
        assert all(chain.index(other) < chain.index(name) for other in needs(plan, name))


def test_steps_are_counted_once_per_training():
    full = four_channel()
    per_epoch = 10  # 440 slices in batches of 45
    assert count_steps(full, {1: 440, 2: 440, 3: 440}) == (3 * 200 + 3 * 50) * per_epoch
    plan = with_overrides(
        transfer_slices(),
        ["stages.first.epoch_slices=16", "stages.retrain.epoch_slices=8", "stages.first.max_epochs=3",
         "stages.retrain.max_epochs=5", "training.batch_size=8"],
    )  # fmt: skip
    trainings = len({leader(plan, stage.name) for stage in plan.stages.chain}) - 1
    assert trainings == 2 * len(COMPARED) - 7  # averaging, selector, both, adabn, r+a; then selector, adabn
    assert count_steps(plan, {1: 440, 2: 24, 3: 22}) == 3 * 2 + trainings * 5


def test_a_strategy_for_all_retrainings_is_one_setting():
    plan = with_overrides(four_channel(), ["strategy.name=rehearsal+averaging", "strategy.store_slices=25"])
    assert plan.strategy_of("Tr1") == {"plain"}
    assert plan.strategy_of("Tr1_R_2") == {"rehearsal", "averaging"}
    assert four_channel().strategy_of("Tr1_R_2_R_3") == {"plain"}
    assert transfer_slices().row_name("Tr1_R_2-ewc", 3) == "Tr1_R_2-ewc_Te3"


@pytest.mark.parametrize("name", ["rehersal", "plain+ewc", "", *("+".join(sorted(pair)) for pair in CLASHES)])
def test_strategies_that_make_no_sense_are_refused(name):
    with pytest.raises(InputError, match="strategy"):
        strategy_parts(name)
    with pytest.raises(InputError):
        with_overrides(four_channel(), [f"strategy.name={name}"])
