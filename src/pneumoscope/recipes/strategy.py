"""How a retraining guards against forgetting: the names of the strategies and their numbers.

A strategy is one part or several joined by ``+``, e.g. ``rehearsal+averaging``. What each part does, and whose idea it
is, stands in `pneumoscope.training.strategies`; here are only names and numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pneumoscope.errors import InputError
from pneumoscope.recipes.settings import OUR_CHOICE, Settings, our_choice, setting, sourced

STRATEGIES: Mapping[str, str] = {
    "plain": "fine-tuning on the new set alone (the paper)",
    "joint": "trains on all slices of all sets seen so far: the upper bound",
    "rehearsal": "mixes a bounded store of slices of earlier sets into every batch",
    "ewc": "holds weights that mattered before: elastic weight consolidation (Kirkpatrick 2017)",
    "lwf": "holds what the network said before on the new images: learning without forgetting (Li and Hoiem 2016)",
    "averaging": "mixes the weights before and after, by as much as validation of the sets to be served wants "
    "(Wortsman 2022)",
    "frozen": "trains the decoder only",
    "site_norm": "trains the normalisation only, one set of it per site (Karani 2018); a selector picks at test",
    "adabn": "re-estimates the normalisation statistics per site (Li 2016); a selector picks at test",
    "selector": "keeps the network of every site and picks one by how the scan looks",
}
"""Every part a strategy can be made of."""

CLASHES = (
    frozenset({"joint", "rehearsal"}),
    frozenset({"frozen", "site_norm"}),
    frozenset({"averaging", "site_norm"}),
    frozenset({"adabn", "site_norm"}),
    frozenset({"adabn", "selector"}),
)
"""Parts that ask for opposite things."""


def strategy_parts(name: str) -> frozenset[str]:
    """The parts of a strategy's name.

    Raises:
        InputError: an unknown part, ``plain`` with others, or two that ask for opposite things.
    """
    parts = frozenset(part.strip() for part in name.split("+"))
    unknown = sorted(parts - set(STRATEGIES))
    if unknown:
        raise InputError(f"unknown strategy {unknown[0]!r} in {name!r}; known are {', '.join(STRATEGIES)}, joined by +")
    clash = next((sorted(pair) for pair in CLASHES if pair <= parts), None)
    if clash or ("plain" in parts and len(parts) > 1):
        raise InputError(f"strategy {name!r}: {' and '.join(clash or ['plain', 'anything else'])} do not go together")
    return parts


@dataclass(frozen=True, kw_only=True)
class Strategy(Settings):
    """The strategy of all retrainings that name none themselves, and the numbers of every strategy."""

    name: str = setting()  # parts of `STRATEGIES` joined by ``+``
    # slices kept of each earlier set by ``rehearsal``; chosen by `training.strategies.rehearsal`
    store_slices: int = setting("slices per set", low=1)
    # of each epoch's slices, from earlier sets together (``rehearsal``, ``joint``); None: every set seen has the same
    # share
    earlier_share: float | None = setting("share of slices", low=0.0, high=0.95)
    # of each earlier set, kept for choosing epochs and mixing weights
    validation_slices: int = setting("slices per set", low=1)
    ewc_weight: float = setting("", low=0.0)  # of the penalty, the Fisher information being scaled to a sum of 1
    # training slices of each earlier set from which the Fisher information is estimated
    ewc_slices: int = setting("slices per set", low=1)
    lwf_weight: float = setting("", low=0.0)  # of the distillation beside the task's own loss
    lwf_temperature: float = setting("", low=0.1, high=20.0)  # softens both answers
    # shares of the new weights that are tried; 1 is plain fine-tuning
    averaging_weights: tuple[float, ...] = setting("share", low=0.0, high=1.0)
    frozen: tuple[str, ...] = setting()  # modules that keep their weights and statistics
    # training slices of each set from which its statistics are estimated
    adabn_slices: int = setting("slices per set", low=2)
    # at test, take the site's own network where it has one, instead of asking the selector
    site_known: bool = setting()

    def __post_init__(self) -> None:
        super().__post_init__()
        strategy_parts(self.name)

    @property
    def parts(self) -> frozenset[str]:
        """The parts of the name."""
        return strategy_parts(self.name)


def plain_strategy() -> Strategy:
    """Plain fine-tuning, as in the papers, and our numbers for every other strategy."""
    return Strategy(
        name=sourced("plain", "Maganaris 2022a and 2022b, section 3: retraining on the new set alone"),
        store_slices=our_choice(40, "a tenth of the 440 training slices of the papers, rounded"),
        earlier_share=our_choice(None, "no set is worth more than another"),
        validation_slices=our_choice(24, "enough to rank, few to keep"),
        ewc_weight=our_choice(1e8, "chosen on validation patients; Kirkpatrick 2017 searches it per problem"),
        ewc_slices=our_choice(60, "the estimate is a mean over slices; more cost time and change little"),
        lwf_weight=sourced(1.0, "Li and Hoiem 2016, section 3: lambda_o = 1; " + OUR_CHOICE + "kept"),
        lwf_temperature=sourced(2.0, "Li and Hoiem 2016, section 3: T = 2; " + OUR_CHOICE + "kept"),
        averaging_weights=sourced(
            (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
            "Wortsman 2022, section 3 mixes linearly; " + OUR_CHOICE + "tenths",
        ),
        frozen=our_choice(("down",), "the encoder, by the names of models.unet"),
        adabn_slices=our_choice(60, "means of many thousand pixels each are stable"),
        site_known=our_choice(False, "a new scan does not say which hospital it resembles"),
    )
