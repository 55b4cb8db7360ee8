"""Which group, decay and rate each weight has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from models.presets import tiny_image, tiny_language
from models.spec import ConstantCurve, Experts, Gated, InitSpec, ModelSpec, Mup, TokenChoice
from models.weights import Role, Weight, weight_table
from optim.group_rule import DEFAULT_GROUPS, GroupRule
from optim.groups import GROUPS, Treatment, layer_shares, plan
from optim.rules import AdamW
from optim.schedules import Schedule
from optim.spec import OptimSpec
from tests.golden import Golden

WIDE = InitSpec(mup=Mup(base_width=8, base_head_width=4))
BALANCED = Experts(
    experts=4, expert=Gated(hidden=8), router=TokenChoice(active=2, balance_rate=1e-3)
)
WIDE_EXPERTS = tiny_language().model_copy(
    update={"layers": 1, "feed_forward": BALANCED, "init": WIDE}
)
RULE = AdamW(decay=0.1)
RULES = (
    GroupRule(name="stem", weights="embedding.*", frozen=True),
    GroupRule(name="gains", roles=("gain",), decay=0.01),
    GroupRule(name="upper", weights="layers.1.*", roles=("matrix",), rate=0.5),
)


def optim(*rules: GroupRule, **changes: Any) -> OptimSpec:
    schedule = Schedule(peak=1e-3, curve=ConstantCurve())
    return OptimSpec(rule=RULE, schedule=schedule, groups=rules, **changes)


RECIPES: dict[str, tuple[ModelSpec, OptimSpec]] = {
    "tiny_language": (tiny_language(), optim()),
    "tiny_image": (tiny_image(), optim()),
    "wide_experts": (WIDE_EXPERTS, optim()),
    "recipe": (
        tiny_image().model_copy(update={"init": WIDE}),
        optim(*RULES, layer_decay=0.5),
    ),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES)


def planned(recipe: str) -> tuple[Mapping[str, Weight], dict[str, Treatment]]:
    model, spec = RECIPES[recipe]
    table = weight_table(model)
    return table, plan(spec, table)


@each_recipe
def test_the_groups_of_a_model_are_the_golden_ones(recipe: str, golden: Golden) -> None:
    _, treatments = planned(recipe)
    lines = [
        f"{group:9} decay {each.decay:<3g} rate x{each.rate:<4g} {name}\n"
        for group in dict.fromkeys(each.group for each in treatments.values())
        for name, each in treatments.items()
        if each.group == group
    ]
    golden.check(f"{recipe}.txt", "".join(lines))


@each_recipe
def test_every_weight_is_in_exactly_one_group(recipe: str) -> None:
    table, treatments = planned(recipe)
    assert list(treatments) == list(table)
    named = {rule.name for rule in RECIPES[recipe][1].groups}
    assert {each.group for each in treatments.values()} <= named | set(DEFAULT_GROUPS)


def test_every_role_has_a_group() -> None:
    assert set(GROUPS) == set(get_args(Role))
    assert set(GROUPS.values()) == set(DEFAULT_GROUPS)


@pytest.mark.parametrize("recipe", ["tiny_language", "tiny_image", "wide_experts"])
def test_only_maps_between_spaces_decay(recipe: str) -> None:
    table, treatments = planned(recipe)
    for name, each in treatments.items():
        two_axes = len(table[name].shape) >= 2 and table[name].role not in ("position", "bias")
        assert each.decay == (0.1 if two_axes else 0.0), name


def test_the_first_rule_that_names_a_weight_has_it() -> None:
    table = weight_table(tiny_language())
    query, layer = "layers.0.attention.query.weight", "layers.0.feed_forward.up.weight"
    narrow = GroupRule(name="queries", weights="*.query.weight", rate=0.25)
    wide = GroupRule(name="first", weights="layers.0.*", rate=0.5, decay=0.2)
    treatments = plan(optim(narrow, wide), table)
    assert treatments[query] == Treatment("queries", RULE, 0.1, 0.25, frozen=False)
    assert treatments[layer] == Treatment("first", RULE, 0.2, 0.5, frozen=False)
    assert treatments["layers.1.feed_forward.up.weight"].group == "decayed"


def test_a_share_of_the_rate_is_one_of_what_mup_gives() -> None:
    rule = GroupRule(name="routers", roles=("router",), rate=0.5)
    treatments = plan(optim(rule), weight_table(WIDE_EXPERTS))
    assert treatments["layers.0.feed_forward.router.weight"].rate == 0.5 * 8 / 32


def test_balance_biases_follow_the_load_unless_their_layer_is_frozen() -> None:
    table, name = weight_table(WIDE_EXPERTS), "layers.0.feed_forward.router.balance"
    slower = plan(optim(GroupRule(name="layer", weights="layers.0.*", rate=0.5)), table)
    assert slower[name] == Treatment("untrained", RULE, 0.0, 0.0, frozen=False)
    still = plan(optim(GroupRule(name="layer", weights="layers.0.*", frozen=True)), table)
    assert still[name] == Treatment("layer", RULE, 0.0, 0.0, frozen=True)
    assert not slower[name].moves and not still[name].moves


def test_each_layer_has_a_share_of_the_rate_of_the_layer_above() -> None:
    """BEiT: embeddings are layer 0, the last norm and the head keep the whole rate."""
    model = tiny_image().model_copy(update={"layers": 12})
    shares = layer_shares(weight_table(model), layer_decay=0.65)
    assert shares["head.output.weight"] == shares["norm.weight"] == 1.0
    assert shares["embedding.stem.weight"] == shares["embedding.positions.weight"] == 0.65**13
    for layer in range(12):
        assert shares[f"layers.{layer}.attention.query.bias"] == 0.65 ** (12 - layer)


WITHOUT: dict[str, tuple[tuple[GroupRule, ...], str]] = {
    "misspelt": (
        (GroupRule(name="queries", weights="layers.*.atention.query.weight"),),
        r"queries matches no weight: weights=.* nearest names are layers.\d.attention.query.weight",
    ),
    "no such role": (
        (GroupRule(name="queries", weights="*.query.weight", roles=("gain", "bias")),),
        "have the roles matrix, not gain, bias",
    ),
    "hidden": (
        (
            GroupRule(name="layers", weights="layers.*"),
            GroupRule(name="queries", weights="*.query.weight"),
        ),
        "rules before queries have all of its weights, such as layers.0.attention.query.weight",
    ),
    "untrained": (
        (GroupRule(name="loads", roles=("balance",), rate=2.0),),
        "loads names only weights that no gradient moves, such as layers.0.feed_forward.router",
    ),
    "twice": (
        (GroupRule(name="a", weights="layers.*"), GroupRule(name="a", weights="embedding.*")),
        "a is the name of two groups",
    ),
    "all frozen": (
        (GroupRule(name="all", weights="*.*", frozen=True),),
        "freezes every weight",
    ),
}


@pytest.mark.parametrize("mistake", WITHOUT)
def test_a_rule_without_weights_is_refused_with_the_reason(mistake: str) -> None:
    rules, told = WITHOUT[mistake]
    with pytest.raises(ValueError, match=f"^optim.groups.*{told}"):
        plan(optim(*rules), weight_table(WIDE_EXPERTS))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "decayed", "weights": "layers.*"}, "name of a group by role"),
        ({"name": "still", "weights": "layers.*", "frozen": True, "rate": 0.5}, "mean nothing"),
        ({"name": "still", "weights": "layers.*", "frozen": True, "decay": 0.0}, "mean nothing"),
        ({"name": "all"}, "must say which weights"),
        ({"name": "matrices", "roles": ("matrices",)}, "roles"),
        ({"name": "none", "weights": "layers.*", "rate": 0.0}, "rate"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        GroupRule(**fields)
