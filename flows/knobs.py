"""What each key of `params.yaml` changes, and where that shows: no key may be dead.

`tests/knobs` holds this against reality: for every key, and every value of one that has few, two
configs that differ in it alone must differ in what is declared here, and in nothing that comes
before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from flows.reference import Parameter, parameters

# Where a change shows. In a model they stand in this order: two models that differ in the first
# values only have the same weights' names and shapes, and from equal weights equal logits.
OBSERVABLES = {
    "snapshot": "the documents that a snapshot holds",
    "tokens": "the tokens of the same documents",
    "samples": "what the samples of a step hold, the same bytes for both frameworks",
    "splits": "which documents are dealt to which split",
    "weights": "names or shapes of the weight table, and of what both twins build",
    "first values": "the first values of the weights",
    "rates": "what multiplies the weights' learning rates, and how fast balance biases move",
    "logits": "logits of both twins from the same weights and inputs",
    "objective": "what both twins minimise; logits stay equal bit for bit",
    "training": "what both twins minimise with a draw; without one nothing changes",
    "update": "the weights after a step from the same gradients, in both frameworks",
    "inputs": "which inputs are let in",
    "strength": "how strong dropout is at each step, the same integer for both twins",
    "program": "the operations that compute the same result",
    "rate": "the learning rate of each step, the same number for both frameworks",
    "decay": "the weight decay of each step, the same number for both frameworks",
    "limits": "by which norms a step is clipped or left out, the same numbers for both frameworks",
    "average": "how the average of the weights moves, the same numbers for both frameworks",
    "treatment": "group, decay or rate of the weights, the same for both frameworks",
    "engine": "the class that computes",
    "compilation": "whether the layers of the torch twin are compiled",
    "layout": "where weights, slots and gradients lie",
    "batches": "which samples a step reads",
    "curve": "the rows of the curve",
    "checkpoints": "the steps that have a checkpoint",
    "comparisons": "the steps after which copies of workers and devices are compared",
    "loss scale": "what the loss of each step is multiplied by, the same for both frameworks",
    "recovery": "what a run does about a bad step",
    "attempts": "how often dead workers are replaced",
    "patience": "how long workers that stand still are waited for",
    "start": "what a run goes on from, or that it refuses to start",
    "end": "the step after which a run ends",
    "watching": "what a run tells of itself: traces, metrics, utilisation",
    "scores": "the scores of the evaluation",
    "documents": "the documents that are measured",
    "slices": "the slices that are reported",
    "passes": "the samples of one forward pass",
    "interval": "the interval that the gate judges by",
    "verdict": "the outcome of the gate",
    "places": "where the registry looks",
    "answers": "what the endpoint answers",
    "deployment": "what Ray Serve is asked to run",
    "rollout": "the actions of a rollout",
}

# The observable of a key and of all that is below it; the longest path wins. Kinds are left out.
# Where values of a key differ in it, each of them shows in one.
DECLARED = {
    "data.source": "snapshot",
    "data.source.parts.weight": "batches",
    "data.task": "samples",
    "data.task.tokenizer": "tokens",
    "data.split": "splits",
    "data.order": "batches",
    "data.order.lengths": "samples",
    "model": "weights",
    "model.inputs.context": "inputs",
    "model.inputs.scale": "logits",
    "model.inputs.separator": "logits",
    "model.inputs.stem.stride": "weights or logits",
    "model.positions": "logits",
    "model.positions.kind": "weights or logits",
    "model.attention.mask": "logits",
    "model.attention.window": "logits",
    "model.attention.soft_cap": "logits",
    "model.attention.scale": "logits",
    "model.feed_forward.router": "logits",
    "model.feed_forward.router.balance_rate": "weights or rates",
    "model.feed_forward.capacity": "training",
    "model.feed_forward.capacity.evaluation": "logits",
    "model.feed_forward.jitter": "training",
    "model.feed_forward.balance": "objective",
    "model.feed_forward.z": "objective",
    "model.block.arrangement": "weights or logits",
    "model.block.layer_scale": "weights or first values",
    "model.block.skip_scale": "logits",
    "model.block.branch_scale": "logits",
    "model.pattern.positions": "logits",
    "model.overrides.positions": "logits",
    "model.dropout": "training",
    "model.dropout.strength": "strength",
    "model.head.pooling": "weights or logits",
    "model.head.scale": "logits",
    "model.head.soft_cap": "logits",
    "model.head.label_smoothing": "objective",
    "model.head.z_loss": "objective",
    "model.head.ahead.weight": "objective",
    "model.init": "first values",
    "model.init.mup": "first values or rates",
    "model.init.mup.base_head_width": "logits",
    "model.execution": "program",
    "optim.rule": "update",
    "optim.rule.decay": "treatment",
    "optim.rule.fallback.rate": "treatment",
    "optim.rule.fallback.rule.decay": "treatment",
    "optim.gradient": "update",
    "optim.gradient.clip": "limits",
    "optim.gradient.skip": "limits",
    "optim.schedule": "rate",
    "optim.decay_schedule": "decay",
    "optim.groups": "treatment",
    "optim.layer_decay": "treatment",
    "optim.average": "average",
    "train.backend": "engine",
    "train.steps": "curve",
    "train.batch": "batches",
    "train.seed": "batches",
    "train.precision": "update",
    "train.accumulation": "passes",
    "train.workers": "batches",
    "train.zero_stage": "layout",
    "train.compile": "compilation",
    "train.log_every_steps": "curve",
    "train.validate_every_steps": "curve",
    "train.validation_batches": "batches",
    "train.checkpoint": "checkpoints",
    "train.compare_replicas_every_steps": "comparisons",
    "train.loss_scale": "loss scale",
    "train.bad_numbers": "recovery",
    "augment": "samples",
    "regularise": "objective",
    "train.restarts": "attempts",
    "train.hang_timeout_s": "patience",
    "train.resume": "start",
    "train.early_stopping": "end",
    "train.profile": "watching",
    "train.metrics_port": "watching",
    "train.peak_flops": "watching",
    "evaluate.baseline": "scores",
    "evaluate.batch": "passes",
    "evaluate.max_documents": "documents",
    "evaluate.max_slices": "slices",
    "gate": "interval",
    "gate.margin": "verdict",
    "registry": "places",
    "serving": "answers",
    "serving.backend": "engine",
    "serving.host": "deployment",
    "serving.port": "deployment",
    "serving.replicas": "deployment",
    "rollout": "rollout",
}

# The observable of a field wherever its section stands, below the deepest path of `DECLARED`.
OF_FIELDS = {
    "epsilon": "logits",
    "activation": "logits",
    "unit_offset": "first values",
}

# What each framework computes with code of its own.
COMPUTED = {"weights", "logits", "objective", "training", "program", "update", "layout", "engine"}

# Keys that not every framework needs, with what the others do.
ONE_SIDED = {
    "model.execution.scan": "Flax; torch calls its layers one by one and needs no loop",
    "train.compile": "PyTorch; Flax compiles the whole step, always",
}


@dataclass(frozen=True)
class Knob:
    """A key and the proof that it does something.

    Attributes:
        key: as `tandem params` writes it.
        changes: one line.
        seen: an observable, or several: `weights or logits`.
        twins: who acts on it.
        witness: the tests that fail when the key does nothing.
        choices: the values of a key that has only these; each of them is shown.
    """

    key: str
    changes: str
    seen: str
    twins: str
    witness: str
    choices: tuple[str, ...]


def knobs() -> tuple[Knob, ...]:
    """Every key of `params.yaml` that has more than one value, in its order."""
    return tuple(
        Knob(
            key=row.key,
            changes=_changes(row),
            seen=seen_in(row.key),
            twins=ONE_SIDED.get(row.key, "both" if computed(row.key) else "the host"),
            witness=f"tests/knobs/test_{row.key.split('.')[0]}.py",
            choices=row.choices,
        )
        for row in parameters()
        if len(row.choices) != 1
    )


def seen_in(key: str) -> str:
    """The observable that a key is declared to change.

    >>> seen_in("model.positions[rope].scaling.kind")
    'logits'
    """
    path = re.sub(r"\[.*?\]", "", key).split(".")
    deepest = next(n for n in range(len(path), 0, -1) if ".".join(path[:n]) in DECLARED)
    declared = DECLARED[".".join(path[:deepest])]
    return OF_FIELDS.get(path[-1], declared) if declared == "weights" else declared


def document() -> str:
    """The table as Markdown: what `docs/knobs.md` holds."""
    return "\n".join(_lines()) + "\n"


def computed(key: str) -> bool:
    """Whether a key acts in code that exists once for each framework."""
    return not set(seen_in(key).split(" or ")).isdisjoint(COMPUTED)


def _changes(row: Parameter) -> str:
    """The meaning in one line; kinds that each have a line of their own are named alone."""
    told_apart = all(f"{kind}: " in row.meaning for kind in row.choices if kind != "null")
    return f"which of {', '.join(row.choices)}" if row.choices and told_apart else row.meaning


def _lines() -> Iterator[str]:
    yield "# Knobs"
    yield ""
    yield "Every key of `params.yaml`, what it changes, and where that shows. `tandem knobs` prints"
    yield "this table and `tests/knobs` proves it: each key has two configs that differ in it alone"
    yield "and differ in what is named here, in both frameworks where both compute it. A key, or a"
    yield "value of one that has few, without such a pair fails the suite."
    yield "`pytest --update-golden` writes this file."
    yield ""
    rows = knobs()
    yield "| seen in | that is |"
    yield "| --- | --- |"
    for name, meaning in OBSERVABLES.items():
        yield f"| {name} | {meaning} |"
    section = ""
    for row in rows:
        if row.key.split(".")[0] != section:
            section = row.key.split(".")[0]
            yield ""
            yield f"## {section}"
            yield ""
            yield f"Proved by `{row.witness}`."
            yield ""
            yield "| key | changes | seen in | who acts |"
            yield "| --- | --- | --- | --- |"
        cells = (f"`{row.key}`", row.changes, row.seen, row.twins)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
