"""A witness for every key of the `model` section."""

from __future__ import annotations

from typing import Any

from models.spec import (
    Ahead,
    Alibi,
    AttentionSpec,
    Bidirectional,
    BlockSpec,
    Capacity,
    ClassHead,
    ConvolutionStem,
    DropoutSpec,
    ExecutionSpec,
    ExpertChoice,
    Experts,
    FanAverage,
    FanIn,
    FrameInputs,
    Gated,
    HeadTransform,
    InitSpec,
    LanguageHead,
    LayerNorm,
    LayerOverride,
    LayerSpec,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    ModelSpec,
    Mup,
    NoPositions,
    Normal,
    NtkScaling,
    PatchInputs,
    Plain,
    Prefix,
    QkNorm,
    RmsNorm,
    Rope,
    Sinusoidal,
    TemporalDropout,
    TokenChoice,
    TokenInputs,
    YarnScaling,
)
from tests.knobs.curves import CURVES
from tests.knobs.witness import Witness, turn

ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "tanh", "sigmoid"]
TOKENS = TokenInputs(vocabulary=11, context=7)
PIXELS = PatchInputs(height=4, width=6, channels=2, patch=2)
FRAMES = FrameInputs(features=3, context=6)
ATTENTION = AttentionSpec(heads=2, key_value_heads=2)
SEES_ALL = AttentionSpec(heads=2, key_value_heads=2, mask=Bidirectional())


def model(**changes: Any) -> ModelSpec:
    """A decoder of one layer with heads of width 4."""
    sections: dict[str, Any] = {
        "inputs": TOKENS,
        "width": 8,
        "layers": 1,
        "positions": Rope(base=10.0),
        "attention": ATTENTION,
        "feed_forward": Gated(hidden=6),
        "norm": RmsNorm(),
        "head": LanguageHead(),
    }
    return ModelSpec(**{**sections, **changes})


def classifier(inputs: TokenInputs | PatchInputs | FrameInputs, **changes: Any) -> ModelSpec:
    """An encoder of one layer."""
    sections: dict[str, Any] = {
        "inputs": inputs,
        "positions": NoPositions(),
        "attention": SEES_ALL,
        "head": ClassHead(classes=5),
    }
    return model(**{**sections, **changes})


def experts(**changes: Any) -> ModelSpec:
    """A decoder whose layer is a mixture of experts."""
    sections: dict[str, Any] = {
        "experts": 4,
        "expert": Gated(hidden=5),
        "router": TokenChoice(active=2),
    }
    return model(feed_forward=Experts(**{**sections, **changes}))


def rope(**changes: Any) -> ModelSpec:
    """A decoder with heads of width 8, whose pairs turn 15 to 1.5 times in 100 positions."""
    return model(width=16, positions=Rope(base=21.5, **changes))


def others(values: list[Any], held: Any) -> list[Any]:
    """The values of a choice but the one that is held."""
    return [value for value in values if value != held]


def dense(part: Gated | Plain, path: str) -> dict[str, Any]:
    """Turns of a dense feed-forward part."""
    return {
        f"{path}.hidden": part.hidden + 2,
        f"{path}.activation": others(ACTIVATIONS, part.activation),
        f"{path}.bias": not part.bias,
    }


def norms(path: str, held: RmsNorm | LayerNorm) -> dict[str, Any]:
    """Turns of a norm."""
    turns = {f"{path}.epsilon": 0.5, f"{path}.unit_offset": True}
    return turns if isinstance(held, RmsNorm) else {**turns, f"{path}.bias": False}


def with_norm(path: str, norm: RmsNorm | LayerNorm) -> ModelSpec:
    """A model with this norm at a path."""
    match path:
        case "inputs.norm":
            return model(inputs=TOKENS.model_copy(update={"norm": norm}))
        case "attention.qk_norm.norm":
            return model(attention=ATTENTION.model_copy(update={"qk_norm": QkNorm(norm=norm)}))
        case "head.transform.norm":
            return model(head=LanguageHead(transform=HeadTransform(norm=norm)))
        case _:
            return model(norm=norm)


def of_norms() -> list[Witness[ModelSpec]]:
    """Every place that a norm stands at."""
    found = []
    for path in ("inputs.norm", "attention.qk_norm.norm", "head.transform.norm", "norm"):
        for held in (RmsNorm(), LayerNorm()):
            found += turn("model", with_norm(path, held), norms(path, held))
        found += turn("model", with_norm(path, RmsNorm()), {path: LayerNorm()})
    return found


def of_inputs() -> list[Witness[ModelSpec]]:
    """What a model reads."""
    images, sequences = classifier(PIXELS), classifier(FRAMES)
    convolved = classifier(FRAMES.model_copy(update={"stem": ConvolutionStem(kernel=2)}))
    coded = convolved.model_copy(update={"positions": LearnedPositions()})
    return [
        *turn("model", classifier(TOKENS), {"inputs": [PIXELS, FRAMES]}),
        *turn(
            "model",
            model(),
            {
                "inputs.vocabulary": 13,
                "inputs.context": 9,
                "inputs.scale": 2.0,
                "inputs.norm": [RmsNorm()],
                "inputs.separator": 3,
            },
        ),
        *turn(
            "model",
            model(inputs=TOKENS.model_copy(update={"separator": 3})),
            {"inputs.separator": 5},
        ),
        *turn(
            "model",
            classifier(PIXELS, positions=LearnedPositions()),
            {"inputs.height": 6, "inputs.width": 4},
        ),
        *turn(
            "model",
            images,
            {
                "inputs.channels": 1,
                "inputs.patch": 1,
                "inputs.class_token": True,
                "inputs.registers": 2,
            },
        ),
        *turn(
            "model",
            sequences,
            {
                "inputs.features": 4,
                "inputs.context": 8,
                "inputs.stem": ConvolutionStem(),
                "inputs.class_token": True,
                "inputs.registers": 2,
            },
        ),
        *turn("model", convolved, {"inputs.stem.kernel": 3, "inputs.stem.stride": 2}),
        *turn("model", coded, {"inputs.stem.stride": 2}),
    ]


def of_positions() -> list[Witness[ModelSpec]]:
    """How a model knows where a position is."""
    yarn = YarnScaling(factor=2.0, original_context=100, fast_turns=9.0, slow_turns=2.0)
    llama = Llama3Scaling(factor=2.0, original_context=100, fast_turns=9.0, slow_turns=2.0)
    scalings = [LinearScaling(factor=2.0), NtkScaling(factor=2.0), yarn, llama]
    kinds = [NoPositions(), LearnedPositions(), Sinusoidal(base=10.0), Alibi()]
    return [
        *turn("model", model(), {"positions": kinds}),
        *turn("model", model(), {"positions.base": 30.0, "positions.fraction": 0.5}),
        *turn("model", classifier(PIXELS, positions=Rope()), {"positions.axes": 2}),
        *turn("model", model(positions=Sinusoidal()), {"positions.base": 30.0}),
        *turn("model", classifier(PIXELS, positions=Sinusoidal()), {"positions.axes": 2}),
        *turn("model", rope(), {"positions.scaling": scalings}),
        *(
            witness
            for scaling in scalings
            for witness in turn("model", rope(scaling=scaling), {"positions.scaling.factor": 4.0})
        ),
        *(
            witness
            for scaling in (yarn, llama)
            for witness in turn(
                "model",
                rope(scaling=scaling),
                {
                    "positions.scaling.original_context": 150,
                    "positions.scaling.fast_turns": 6.0,
                    "positions.scaling.slow_turns": 4.0,
                },
            )
        ),
    ]


def of_attention() -> list[Witness[ModelSpec]]:
    """Who looks at whom."""
    return [
        *turn(
            "model",
            model(),
            {
                "attention.heads": 4,
                "attention.key_value_heads": 1,
                "attention.head_width": 6,
                "attention.mask": [Bidirectional(), Prefix(end=3)],
                "attention.window": 2,
                "attention.bias": True,
                "attention.output_bias": True,
                "attention.qk_norm": QkNorm(),
                "attention.soft_cap": 0.5,
                "attention.scale": 2.0,
            },
        ),
        *turn(
            "model",
            model(attention=AttentionSpec(heads=2, key_value_heads=2, mask=Prefix(end=3))),
            {"attention.mask.end": 5},
        ),
        *turn(
            "model",
            model(attention=AttentionSpec(heads=2, key_value_heads=2, qk_norm=QkNorm())),
            {"attention.qk_norm.over": "width"},
        ),
    ]


def of_feed_forward() -> list[Witness[ModelSpec]]:
    """The position-wise part, dense and of experts."""
    mixture = Experts(experts=4, expert=Gated(hidden=5), router=TokenChoice(active=2))
    found = turn("model", model(), {"feed_forward": [Plain(hidden=6), mixture]})
    for part in (Gated(hidden=6), Plain(hidden=6)):
        found += turn("model", model(feed_forward=part), dense(part, "feed_forward"))
        found += turn("model", experts(expert=part), dense(part, "feed_forward.expert"))
        found += turn("model", experts(shared=part), dense(part, "feed_forward.shared"))
    encoder = classifier(TOKENS, feed_forward=mixture)
    choosing = mixture.model_copy(update={"router": ExpertChoice(factor=1.0)})
    found += turn("model", encoder, {"feed_forward.router": ExpertChoice(factor=1.0)})
    found += turn(
        "model",
        classifier(TOKENS, feed_forward=choosing),
        {"feed_forward.router.factor": 2.0},
    )
    found += turn(
        "model",
        experts(),
        {
            "feed_forward.experts": 3,
            "feed_forward.expert": Plain(hidden=5),
            "feed_forward.router.active": 1,
            "feed_forward.router.score": "sigmoid",
            "feed_forward.router.normalise": False,
            "feed_forward.router.scale": 2.0,
            "feed_forward.router.balance_rate": 0.1,
            "feed_forward.capacity": Capacity(training=0.5),
            "feed_forward.shared": [Gated(hidden=6), Plain(hidden=6)],
            "feed_forward.jitter": 0.9,
            "feed_forward.balance": 0.5,
            "feed_forward.z": 0.5,
        },
    )
    balanced = TokenChoice(active=2, balance_rate=0.1)
    found += turn("model", experts(router=balanced), {"feed_forward.router.balance_rate": 0.2})
    limited = mixture.model_copy(update={"capacity": Capacity(training=0.5)})
    turns = {"feed_forward.capacity.training": 1.0, "feed_forward.capacity.evaluation": 0.5}
    return found + turn("model", classifier(TOKENS, feed_forward=limited), turns)


def of_block() -> list[Witness[ModelSpec]]:
    """How layers are put together."""
    own = model(layers=3)
    layer = LayerSpec(
        positions=own.positions, attention=own.attention, feed_forward=own.feed_forward
    )
    windowed = ATTENTION.model_copy(update={"window": 1})
    alternate = layer.model_copy(update={"attention": windowed})
    wider = layer.model_copy(update={"feed_forward": Gated(hidden=9)})
    override = LayerOverride(layer=1, **vars(wider))
    sections = {
        "positions": NoPositions(),
        "attention": AttentionSpec(heads=4, key_value_heads=1),
        "feed_forward": Gated(hidden=7),
    }
    arrangements = ["post", "branch", "sandwich", "parallel", "shared"]
    return [
        *turn("model", model(), {"width": 16, "layers": 2}),
        *turn(
            "model",
            model(),
            {
                "block.arrangement": arrangements,
                "block.skip_scale": 2.0,
                "block.branch_scale": 2.0,
                "block.layer_scale": 0.5,
            },
        ),
        *turn("model", model(block=BlockSpec(layer_scale=0.5)), {"block.layer_scale": 0.1}),
        *turn("model", own, {"pattern": [(wider, layer)], "overrides": [(override,)]}),
        *turn(
            "model",
            model(layers=3, pattern=(layer, alternate)),
            {f"pattern[*].{name}": value for name, value in sections.items()},
        ),
        *turn(
            "model",
            model(layers=3, overrides=(override,)),
            {"overrides[*].layer": 2}
            | {f"overrides[*].{name}": value for name, value in sections.items()},
        ),
    ]


def of_dropout() -> list[Witness[ModelSpec]]:
    """What training drops."""
    shares = ("embedding", "token", "attention", "hidden", "residual", "path", "head")
    temporal = DropoutSpec(temporal=TemporalDropout(share=0.5, span=2))
    all_of_it = DropoutSpec(attention=0.3, hidden=0.3, residual=0.3, path=0.3)
    dropped = model(dropout=DropoutSpec(residual=0.5))
    return [
        *turn("model", model(), {f"dropout.{share}": 0.5 for share in shares}),
        *turn("model", model(), {"dropout.temporal": TemporalDropout(share=0.5, span=2)}),
        *turn(
            "model",
            model(dropout=temporal),
            {"dropout.temporal.share": 0.8, "dropout.temporal.span": 3},
        ),
        *turn("model", model(layers=2, dropout=all_of_it), {"dropout.depth": "linear"}),
        *turn("model", dropped, {"dropout.strength": list(CURVES[1:])}),
    ]


def of_head() -> list[Witness[ModelSpec]]:
    """What a model answers."""
    transform = LanguageHead(transform=HeadTransform())
    ahead = LanguageHead(ahead=Ahead(tokens=1))
    classes = classifier(TOKENS)
    return [
        *turn("model", model(), {"head": ClassHead(classes=5)}),
        *turn(
            "model",
            model(),
            {
                "head.tied": False,
                "head.bias": True,
                "head.scale": 2.0,
                "head.soft_cap": 0.5,
                "head.transform": HeadTransform(),
                "head.label_smoothing": 0.3,
                "head.z_loss": 0.3,
                "head.ahead": Ahead(tokens=1),
            },
        ),
        *turn(
            "model",
            model(head=transform),
            {"head.transform.activation": others(ACTIVATIONS, "gelu")},
        ),
        *turn("model", model(head=ahead), {"head.ahead.tokens": 2, "head.ahead.weight": 0.5}),
        *turn(
            "model",
            classes,
            {
                "head.classes": 4,
                "head.pooling": ["first", "last", "attention"],
                "head.label_smoothing": 0.3,
            },
        ),
    ]


def of_init() -> list[Witness[ModelSpec]]:
    """Where weights begin."""
    found: list[Witness[ModelSpec]] = []
    before = {"positions": LearnedPositions(), "head": LanguageHead(tied=False)}
    laws = [Normal(std=0.1), FanIn(), FanAverage()]
    for role in ("matrix", "embedding", "position", "head"):
        found += turn("model", model(**before), {f"init.{role}": laws})
        for law in laws:
            init = InitSpec.model_validate({role: law})
            field = "std" if isinstance(law, Normal) else "gain"
            found += turn("model", model(init=init, **before), {f"init.{role}.{field}": 2.0})
    widened = InitSpec(mup=Mup(base_width=4, base_head_width=2))
    # Of this law the rates alone tell the base width, since its deviations shrink by themselves.
    lecun = InitSpec(matrix=FanIn(), embedding=Normal())
    wide = lecun.model_copy(update={"mup": widened.mup})
    return [
        *found,
        *turn(
            "model",
            model(),
            {
                "init.shape": ["truncated_normal", "uniform"],
                "init.depth_scaled": False,
                "init.mup": widened.mup,
            },
        ),
        *turn(
            "model",
            model(init=widened),
            {"init.mup.base_width": 2, "init.mup.base_head_width": 1},
        ),
        *turn("model", model(init=lecun), {"init.mup": widened.mup}),
        *turn("model", model(init=wide), {"init.mup.base_width": 2}),
    ]


def of_execution() -> list[Witness[ModelSpec]]:
    """How a model is computed."""
    return [
        *turn(
            "model",
            model(execution=ExecutionSpec(kernel="reference")),
            {"execution.kernel": ["fused", "auto"]},
        ),
        *turn("model", model(), {"execution.checkpointing": ["matmuls", "blocks"]}),
        *turn("model", model(layers=2), {"execution.scan": "always"}),
        *turn("model", model(layers=4), {"execution.scan": "never"}),
    ]


WITNESSES: tuple[Witness[ModelSpec], ...] = (
    *of_inputs(),
    *of_positions(),
    *of_attention(),
    *of_feed_forward(),
    *of_norms(),
    *of_block(),
    *of_dropout(),
    *of_head(),
    *of_init(),
    *of_execution(),
)
