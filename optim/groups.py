"""How each weight is trained: its group, decay and rate. Each belongs to exactly one group."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from models.weights import Role, Weight
from optim.group_rule import GroupRule
from optim.parts import part_of
from optim.rules import AnyRule
from optim.spec import OptimSpec

Group = Literal["decayed", "free", "untrained"]

# Decay pulls on maps between spaces, whose size the next norm or softmax makes redundant. A gain,
# a bias or a position has no such freedom: pulling it to zero changes what the layer computes.
GROUPS: dict[Role, Group] = {
    "embedding": "decayed",
    "matrix": "decayed",
    "router": "decayed",
    "head": "decayed",
    "position": "free",
    "gain": "free",
    "bias": "free",
    # It follows the load of its expert; no gradient moves it.
    "balance": "untrained",
}


class Treatment(NamedTuple):
    """How one weight is trained.

    Attributes:
        group: a rule's name, or what the weight's role gives.
        rule: what updates it: `optim.rule`, or the fallback of one that takes only matrices.
        decay: weight decay, times the rate.
        rate: what multiplies the learning rate: the group's share, the fallback's, muP's and
            layer decay's.
        frozen: the run leaves it as it is; the load of experts does not move it either.
    """

    group: str
    rule: AnyRule
    decay: float
    rate: float
    frozen: bool

    @property
    def moves(self) -> bool:
        """Whether the optimizer updates it."""
        return not self.frozen and self.group != "untrained"


def plan(optim: OptimSpec, table: Mapping[str, Weight]) -> dict[str, Treatment]:
    """How every weight of a table is trained, in the table's order.

    The first rule of `optim.groups` that names a weight has it; what none names goes by role.

    Raises:
        ValueError: a rule has no weight, two have one name, or nothing is left to train.
    """
    _check_names(optim.groups)
    held: dict[str, list[str]] = {rule.name: [] for rule in optim.groups}
    treatments = {}
    for name, weight in table.items():
        rule = next((rule for rule in optim.groups if _names(rule, weight)), None)
        if rule is not None:
            held[rule.name].append(name)
        treatments[name] = _treatment(weight, rule, whole=optim.rule)
    for rule in optim.groups:
        if not any(table[name].trained for name in held[rule.name]):
            raise ValueError(_without_weights(rule, table))
    if not any(treatment.moves for treatment in treatments.values()):
        raise ValueError("optim.groups freezes every weight, so that nothing trains.")
    if optim.layer_decay is None:
        return treatments
    shares = layer_shares(table, layer_decay=optim.layer_decay)
    return {
        name: treatment._replace(rate=treatment.rate * shares[name])
        for name, treatment in treatments.items()
    }


def layer_shares(table: Mapping[str, Weight], *, layer_decay: float) -> dict[str, float]:
    """What layer-wise decay multiplies the learning rate of every weight with.

    ``layer_decay^(L + 1 - depth)``: depth 0 for embeddings and positions, n + 1 for layer n, L + 1
    for the last norm, the head and layers of multi-token prediction, which keep the whole rate.

    Source: Bao et al. 2021 (BEiT), arXiv:2106.08254, `LayerDecayValueAssigner` of its code; first
    Clark et al. 2020 (ELECTRA), arXiv:2003.10555, appendix A.
    """
    layers = 1 + max((int(n.split(".")[1]) for n in table if n.startswith("layers.")), default=-1)
    return {name: float(layer_decay ** (layers + 1 - _depth(name, layers))) for name in table}


def _depth(name: str, layers: int) -> int:
    trunk, rest = name.split(".", 1)
    if trunk == "embedding":
        return 0
    return int(rest.split(".")[0]) + 1 if trunk == "layers" else layers + 1


def _names(rule: GroupRule, weight: Weight) -> bool:
    by_role = rule.roles is None or weight.role in rule.roles
    return by_role and fnmatchcase(weight.name, rule.weights)


def _treatment(weight: Weight, rule: GroupRule | None, *, whole: AnyRule) -> Treatment:
    group, part = GROUPS[weight.role], part_of(whole, weight)
    if rule is not None and rule.frozen:
        return Treatment(rule.name, part.rule, 0.0, 0.0, frozen=True)
    if group == "untrained":
        return Treatment(group, part.rule, 0.0, 0.0, frozen=False)
    decay = part.rule.decay if group == "decayed" else 0.0
    share = weight.rate * part.rate
    if rule is None:
        return Treatment(group, part.rule, decay, share, frozen=False)
    decay = decay if rule.decay is None else rule.decay
    return Treatment(rule.name, part.rule, decay, share * rule.rate, frozen=False)


def _check_names(rules: tuple[GroupRule, ...]) -> None:
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"optim.groups: {name} is the name of two groups; rename one.")


def _without_weights(rule: GroupRule, table: Mapping[str, Weight]) -> str:
    """Why a rule has no weight."""
    meant = [weight.name for weight in table.values() if _names(rule, weight)]
    if any(table[name].trained for name in meant):
        return (
            f"optim.groups: rules before {rule.name} have all of its weights, such as {meant[0]}; "
            "the first rule that names a weight has it. Put the narrower rule first."
        )
    if meant:
        return (
            f"optim.groups: {rule.name} names only weights that no gradient moves, such as "
            f"{meant[0]}; leave it out."
        )
    by_name = [name for name in table if fnmatchcase(name, rule.weights)]
    if by_name:
        roles = sorted({table[name].role for name in by_name})
        return (
            f"optim.groups: {rule.name} matches no weight: those of weights={rule.weights} have "
            f"the roles {', '.join(roles)}, not {', '.join(rule.roles or ())}."
        )
    nearest = difflib.get_close_matches(rule.weights, table, n=3, cutoff=0.0)
    return (
        f"optim.groups: {rule.name} matches no weight: weights={rule.weights}. "
        f"The nearest names are {', '.join(nearest)}."
    )
