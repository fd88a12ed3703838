"""Which system a stage may have, and that a study holds every number of those it has."""

import json
from dataclasses import asdict, replace

import pytest

from pneumoscope.errors import InputError
from pneumoscope.recipes import settings as access
from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.recipes.papers.transfer import transfer_slices, transfer_systems, transfer_systems_small
from pneumoscope.recipes.registry import RECIPES, build_any
from pneumoscope.recipes.stages import OWN_SYSTEMS, VOLUME_RECIPES, build_volume_recipe, volume_system
from pneumoscope.study.folder import start

PATIENTS = "split.by=patient"


def only_first(experiment):
    """The experiment with its first stage alone."""
    return replace(experiment, paper=(), stages=replace(experiment.stages, chain=experiment.stages.chain[:1]))


@pytest.mark.parametrize("system", [*OWN_SYSTEMS, *VOLUME_RECIPES])
def test_any_recipe_on_volumes_can_make_a_stage(system):
    changed = access.with_overrides(only_first(four_channel()), [PATIENTS, f"stages.chain.Tr1.system={system}"])
    assert changed.stages.chain[0].system == system
    assert [s.name for s in changed.systems] == ([system] if system in VOLUME_RECIPES else [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([PATIENTS, "stages.chain.Tr1.system=unet"], "unknown system 'unet'; known are slices, slices-2.5d, threshold"),
        (["stages.chain.Tr1.system=mueller-2021"], "puts slices of one scan into training and test"),
        (["stages.chain.Tr1.system=threshold"], "use --set split.by=patient"),
        (["stages.chain.Tr1.system=slices-2.5d"], "use --set split.by=patient"),
    ],
)
def test_systems_that_cannot_be_are_refused_in_one_line(settings, message):
    with pytest.raises(InputError) as refused:
        access.with_overrides(only_first(four_channel()), settings)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_starting_from_another_system_is_refused():
    with pytest.raises(InputError, match=r"Tr1_R_2 is of system slices and starts from Tr1, which is of mueller-2021"):
        access.with_overrides(four_channel(), [PATIENTS, "stages.chain.Tr1.system=mueller-2021"])
    both = [f"stages.chain.{name}.system=mueller-2021" for name in ("Tr1", "Tr1_R_2", "Tr1_R_2_R_3")]
    assert len(access.with_overrides(four_channel(), [PATIENTS, *both]).systems) == 1


def test_pictures_are_no_scans():
    for system in ("bressem-2021-small", "threshold"):
        with pytest.raises(InputError, match="8-bit slices; use a recipe on scans"):
            access.with_overrides(only_first(transfer_slices()), [f"stages.chain.Tr1.system={system}"])
    near = access.with_overrides(only_first(transfer_slices()), ["stages.chain.Tr1.system=slices-2.5d"])
    assert near.systems == ()


def test_strategies_of_slices_are_refused_for_volumes_but_joint_is_not():
    plan = transfer_systems_small()
    for system in ("mueller", "threshold"):
        with pytest.raises(InputError, match=r"strategy rehearsal is for networks on slices"):
            access.with_overrides(plan, [f"stages.chain.Tr1_R_2-{system}.strategy=rehearsal"])
    access.with_overrides(plan, ["stages.chain.Tr1_R_2-mueller.strategy=joint"])
    access.with_overrides(plan, ["stages.chain.Tr1_R_2-2.5d.strategy=rehearsal"])


def test_a_study_holds_the_numbers_of_its_systems_and_they_can_be_set():
    plan = transfer_systems()
    rows = {row["key"]: row for row in access.describe(plan)}
    assert rows["systems.mueller-2021.phases.fit.max_epochs"]["value"] == 1000
    assert rows["systems.mueller-2021.phases.fit.max_epochs"]["source"].startswith("Mueller 2021")
    changed = access.with_overrides(plan, ["systems.mueller-2021.phases.fit.max_epochs=7"])
    recipe = changed.systems[0].experiment()
    assert recipe.phases[0].max_epochs == 7
    assert recipe.network == build_volume_recipe("mueller-2021").network
    assert access.differences(plan, changed) == ["systems.mueller-2021.phases.fit.max_epochs: 1000 -> 7"]


def test_a_system_and_its_numbers_can_be_set_at_once():
    settings = [PATIENTS, "systems.mueller-2021.training.seed=4", "stages.chain.Tr1.system=mueller-2021"]
    changed = access.with_overrides(only_first(four_channel()), settings)
    assert changed.systems[0].training.seed == 4
    with pytest.raises(InputError, match="no such value"):
        access.with_overrides(only_first(four_channel()), [*settings, "systems.bressem-2021.training.seed=4"])
    with pytest.raises(InputError, match="no such value"):
        access.with_overrides(four_channel(), ["systems.mueller-2021.training.seed=4"])


def test_numbers_of_a_system_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match="scans that are resized as a whole have no spacing_mm"):
        access.with_overrides(transfer_systems(), ["systems.bressem-2021.preparation.spacing_mm=1,1,1"])
    with pytest.raises(InputError, match="must find infection"):
        access.with_overrides(transfer_systems(), ["systems.bressem-2021.preparation.classes=lungs"])


def test_a_system_that_no_stage_names_is_not_kept():
    plan = transfer_systems()
    chain = tuple(stage for stage in plan.stages.chain if stage.system != "mueller-2021")
    assert [s.name for s in replace(plan, stages=replace(plan.stages, chain=chain)).systems] == ["bressem-2021"]


def test_an_experiment_written_before_systems_existed_is_read_and_unchanged():
    for name in RECIPES:
        plan = build_any(name)
        if plan.systems:
            continue
        old = json.loads(json.dumps(asdict(plan)))
        del old["systems"]
        del old["preprocessing"]["neighbours"]
        del old["preprocessing"]["sources"]["neighbours"]
        for stage in old["stages"]["chain"]:
            del stage["system"]
            del stage["sources"]["system"]
        read = access.from_json(type(plan), old)
        assert access.differences(read, plan) == []
        assert {stage.system for stage in read.stages.chain} == {"slices"}


def test_a_finished_study_may_be_given_a_system_more(tmp_path):
    plan = transfer_systems_small()
    chain = tuple(stage for stage in plan.stages.chain if stage.system != "bressem-2021-small")
    before = replace(plan, stages=replace(plan.stages, chain=chain))
    start(before, tmp_path)
    start(plan, tmp_path, resume=True)
    with pytest.raises(InputError, match="other settings"):
        start(before, tmp_path, resume=True)


def test_the_recipes_ask_the_same_of_every_system():
    for plan in (transfer_systems(), transfer_systems_small()):
        roads = {}
        for stage in plan.stages.chain:
            roads.setdefault(stage.system, []).append(stage.site)
        assert len(roads) == 5
        assert all(road == [1, 2, 3] for road in roads.values())
        assert plan.split.by == "patient"
        assert not plan.paper
    assert volume_system("mueller-2021").name == "mueller-2021"


def test_a_papers_numbers_are_not_laid_beside_another_system():
    plan = with_overrides_of_three("mueller-2021-small")
    assert plan.paper_row("Tr1", 1) is None
    assert plan.row_name("Tr1_R_2", 1) == "Tr1_R_2_Te1"
    assert plan.paper_row("Tr3", 3) is not None
    assert plan.row_name("Tr3", 3) == "Tr3_R_None_Te3"


def with_overrides_of_three(system):
    """The paper's first road by another system, its other stages as they are."""
    road = [f"stages.chain.{name}.system={system}" for name in ("Tr1", "Tr1_R_2", "Tr1_R_2_R_3")]
    return access.with_overrides(four_channel(), [PATIENTS, *road])
