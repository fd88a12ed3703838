"""The systems of a transfer study on the made-up hospitals, as small as it gets."""

from dataclasses import replace

from made_up_hospitals import SMALL, make_cases

from pneumoscope.recipes.papers.transfer import transfer_systems_small
from pneumoscope.recipes.settings import with_overrides

VOLUMES = ("mueller-2021-small", "bressem-2021-small")
TINY = [
    *(setting for setting in SMALL if not setting.startswith(("split", "stages"))),
    "stages.first.max_epochs=1",
    "stages.retrain.max_epochs=1",
    "systems.mueller-2021-small.network.features=2,4",
    "systems.mueller-2021-small.preparation.spacing_mm=20,20,20",
    "systems.mueller-2021-small.phases.fit.size=16,16,8",
    "systems.mueller-2021-small.phases.fit.steps=2",
    "systems.mueller-2021-small.phases.fit.max_epochs=1",
    "systems.mueller-2021-small.training.validation_boxes=1",
    "systems.bressem-2021-small.network.features=2,4,4,2,2",
    *(
        f"systems.bressem-2021-small.phases.{phase}.{setting}"
        for phase in ("decoder", "low", "high")
        for setting in ("size=16,16,8", "steps=1", "max_epochs=1")
    ),
]


def tiny(*more):
    return with_overrides(transfer_systems_small(), [*TINY, *more])


def only(plan, *systems_kept, stages=3):
    """The plan with some systems, and the first stages of each."""
    chain = [s for s in plan.stages.chain if s.system in systems_kept and len(plan.lineage(s.name)) <= stages]
    return replace(plan, stages=replace(plan.stages, chain=tuple(chain)))


def three_sites():
    """Cases of all three hospitals; the third has no lung masks."""
    return {1: make_cases(1, 4), 2: make_cases(2, 4), 3: make_cases(3, 4, lungs=False)}
