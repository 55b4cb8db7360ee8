"""What defines attention: who is seen, kernels that agree, and decoding step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

import models.flax.attention
import models.flax.kernels
import models.flax.layout
import models.flax.model
import models.flax.weights
import models.torch.attention
import models.torch.kernels
import models.torch.layout
import models.torch.model
import models.torch.weights
from models.reference import attention as reference
from models.reference import layout as places
from models.reference import model as reference_model
from models.scores import spans
from models.spec import (
    POLICIES,
    Alibi,
    AttentionSpec,
    Bidirectional,
    Causal,
    DropoutSpec,
    ExecutionSpec,
    LearnedPositions,
    ModelSpec,
    NoPositions,
    Prefix,
    Rope,
    TokenInputs,
)
from models.weights import weight_table
from tests.models.triangle import case_of, difference
from tests.models.variants.attention import ATTENTION, PACKED, PROMPTED, attention
from tests.models.variants.build import decoder, frames
from tests.tolerances import FORWARD_FLOAT64, GRADIENT_FLOAT64

Array = NDArray[Any]
LENGTH = 300  # three blocks of queries, the last not full


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


# Who sees whom.

DOCUMENTS = np.array([[5, 1, 5, 1, 1, 5], [1, 5, 5, 5, 5, 1]])


def test_a_separator_belongs_to_the_document_that_it_ends() -> None:
    spec = decoder(inputs=TokenInputs(vocabulary=6, context=6, separator=1))
    layout = places.layout_of(spec, DOCUMENTS)
    assert layout.document is not None
    np.testing.assert_array_equal(layout.document, [[0, 0, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(layout.index, [[0, 1, 0, 1, 0, 0], [0, 0, 1, 2, 3, 4]])


def test_a_prompt_goes_up_to_and_with_the_first_token_that_ends_one() -> None:
    spec = decoder(attention=attention(mask=Prefix(end=1)))
    layout = places.layout_of(spec, np.array([[5, 1, 5, 1], [1, 5, 5, 5], [5, 5, 5, 5]]))
    assert layout.prompt is not None
    np.testing.assert_array_equal(layout.prompt, [2, 1, 0])


LAYOUTS = {
    "documents": (decoder(inputs=PACKED), DOCUMENTS, None),
    "prompts": (decoder(attention=attention(mask=Prefix(end=1))), DOCUMENTS, None),
    "ragged tokens": (decoder(), DOCUMENTS, np.array([3, 6])),
    "ragged frames": (frames(), np.zeros((2, 6, 3)), np.array([3, 6])),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_the_same_integers_in_all_three(name: str) -> None:
    spec, inputs, lengths = LAYOUTS[name]
    expected = places.layout_of(spec, inputs, lengths=lengths)
    torches = models.torch.layout.layout_of(
        spec, torch.tensor(inputs), lengths=None if lengths is None else torch.tensor(lengths)
    )
    flaxes = models.flax.layout.layout_of(
        spec, jnp.asarray(inputs), lengths=None if lengths is None else jnp.asarray(lengths)
    )
    for own, in_torch, in_flax in zip(expected, torches, flaxes, strict=True):
        assert (own is None) == (in_torch is None) == (in_flax is None)
        if own is not None:
            np.testing.assert_array_equal(in_torch, own)
            np.testing.assert_array_equal(in_flax, own)


SEEN = {
    "causal": (attention(), ["10000", "11000", "11100", "11110", "11111"]),
    "window": (attention(window=2), ["10000", "11000", "01100", "00110", "00011"]),
    "prefix": (attention(mask=Prefix(end=9)), ["11100", "11100", "11100", "11110", "11111"]),
    "prefix and window": (
        attention(mask=Prefix(end=9), window=2),
        ["11000", "11100", "01100", "00110", "00011"],
    ),
    "both sides": (attention(mask=Bidirectional()), ["11111"] * 5),
    "both sides and window": (
        attention(mask=Bidirectional(), window=2),
        ["11000", "11100", "01110", "00111", "00011"],
    ),
}


@pytest.mark.parametrize("name", SEEN)
def test_each_position_sees_what_its_mask_says(name: str) -> None:
    own, rows = SEEN[name]
    spec = decoder(attention=own, inputs=TokenInputs(vocabulary=11, context=8))
    tokens = np.array([[0, 0, 9, 0, 0]])
    expected = np.array([[mark == "1" for mark in row] for row in rows])
    np.testing.assert_array_equal(reference.seen(own, places.layout_of(spec, tokens))[0], expected)
    in_torch = models.torch.layout.layout_of(spec, torch.tensor(tokens))
    visible = models.torch.kernels.seen(own, in_torch, in_torch)
    np.testing.assert_array_equal(visible[0], expected)
    in_flax = models.flax.layout.layout_of(spec, jnp.asarray(tokens))
    np.testing.assert_array_equal(models.flax.kernels.seen(own, in_flax, in_flax)[0], expected)


@pytest.mark.parametrize("mask", [Causal(), Bidirectional(), Prefix(end=1)])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 11, 40])
@pytest.mark.parametrize("block", [1, 3, 8, 64])
def test_spans_leave_out_no_visible_pair(mask: Any, window: int | None, block: int) -> None:
    own = AttentionSpec(heads=1, key_value_heads=1, mask=mask, window=window)
    spec = decoder(inputs=TokenInputs(vocabulary=2, context=23), attention=own)
    visible = reference.seen(own, places.layout_of(spec, np.zeros((1, 23), int)))[0]
    covered = np.zeros((23, 23), int)
    for span in spans(own, 23, block=block):
        covered[span.queries, span.keys] += 1
    assert covered.max() == 1
    assert (covered[visible] == 1).all()


def test_work_of_a_window_grows_with_the_length_and_not_with_its_square() -> None:
    own = attention(window=64)

    def scores(length: int) -> int:
        found = spans(own, length, block=64)
        return sum((s.queries.stop - s.queries.start) * (s.keys.stop - s.keys.start) for s in found)

    assert scores(4096) < 2.1 * scores(2048)
    assert scores(4096) < 4096 * 2 * 64


def test_padding_changes_no_position_that_counts() -> None:
    for own in (attention(mask=Bidirectional()), attention(mask=Bidirectional(), window=2)):
        spec = decoder(attention=own)
        case = case_of(spec, training=False)
        lengths = np.array([7, 4, 2])
        whole = reference_model.logits(spec, case.weights, case.inputs, lengths=lengths)
        for row, length in enumerate(lengths):
            short = case.inputs[row : row + 1, :length]
            alone = reference_model.logits(spec, case.weights, short)[0]
            assert difference(whole[row, :length], alone) < FORWARD_FLOAT64
        twin = torch_model(spec, case.weights).logits(
            torch.tensor(case.inputs), lengths=torch.tensor(lengths)
        )
        assert difference(twin.detach().numpy(), whole) < FORWARD_FLOAT64
        found = flax_model(spec, case.weights).logits(
            jnp.asarray(case.inputs), lengths=jnp.asarray(lengths)
        )
        assert difference(np.asarray(found), whole) < FORWARD_FLOAT64


# Kernels.


@dataclass(frozen=True)
class Asked:
    """What kernels are asked to compute."""

    attention: AttentionSpec
    alibi: bool = False
    packed: bool = False
    prompt: bool = False
    ragged: bool = False


ASKED = {
    "causal": Asked(attention()),
    "one key head": Asked(attention(key_value_heads=1)),
    "window": Asked(attention(window=40)),
    "window across blocks": Asked(attention(window=140)),
    "both sides": Asked(attention(mask=Bidirectional())),
    "window on both sides": Asked(attention(mask=Bidirectional(), window=40)),
    "prefix": Asked(attention(mask=Prefix(end=0)), prompt=True),
    "prefix and window": Asked(attention(mask=Prefix(end=0), window=150), prompt=True),
    "penalty": Asked(attention(heads=6), alibi=True),
    "penalty on both sides": Asked(attention(mask=Bidirectional()), alibi=True),
    "documents and penalty": Asked(attention(), alibi=True, packed=True),
    "documents": Asked(attention(), packed=True),
    "ragged": Asked(attention(mask=Bidirectional()), ragged=True),
    "positions that see nothing": Asked(attention(window=20), ragged=True),
}


def layout_fields(asked: Asked) -> tuple[Array | None, ...]:
    """Place, index, document, prompt and lengths of two rows."""
    place = np.arange(LENGTH, dtype=np.int32)[None]
    document = np.cumsum(np.random.default_rng(4).random((2, LENGTH)) < 0.02, axis=1)
    return (
        place,
        place,
        document.astype(np.int32) if asked.packed else None,
        np.array([170, 0], np.int32) if asked.prompt else None,
        np.array([LENGTH, 70], np.int32) if asked.ragged else None,
    )


def heads_of(asked: Asked) -> list[Array]:
    """Queries, keys, values, and a direction to take the gradient in."""
    generator = np.random.default_rng(5)
    own = asked.attention
    counts = (own.heads, own.key_value_heads, own.key_value_heads, own.heads)
    return [generator.standard_normal((2, count, LENGTH, 8)) for count in counts]


def by_torch(asked: Asked, kernel: str) -> list[Array]:
    kernels, own = models.torch.kernels, asked.attention
    fields: Any = (None if f is None else torch.tensor(f) for f in layout_fields(asked))
    layout = models.torch.layout.Layout(*fields)
    leaves = (torch.tensor(part, requires_grad=True) for part in heads_of(asked))
    query, key, value, along = leaves
    common: dict[str, Any] = {"scale": 0.4, "reduce": torch.float64}
    if kernel == "fused":
        mixed = kernels.fused(query, key, value, layout, attention=own, alibi=asked.alibi, **common)
    else:
        penalty = kernels.penalty(own.heads, layout, layout, dtype=torch.float64)
        mixed = kernels.written_out(
            query,
            key,
            value,
            visible=kernels.seen(own, layout, layout),
            bias=penalty if asked.alibi else None,
            soft_cap=None,
            **common,
        )
    gradients = torch.autograd.grad((mixed * along.detach()).sum(), (query, key, value))
    return [part.detach().numpy() for part in (mixed, *gradients)]


def by_flax(asked: Asked, kernel: str) -> list[Array]:
    kernels, own = models.flax.kernels, asked.attention
    fields: Any = (None if f is None else jnp.asarray(f) for f in layout_fields(asked))
    layout = models.flax.layout.Layout(*fields)
    *heads, along = (jnp.asarray(part) for part in heads_of(asked))
    common: dict[str, Any] = {"scale": 0.4, "reduce": "float64"}

    def mix(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        if kernel == "fused":
            return kernels.fused(
                query, key, value, layout, attention=own, alibi=asked.alibi, **common
            )
        penalty = kernels.penalty(own.heads, layout, layout, dtype="float64")
        return kernels.written_out(
            query,
            key,
            value,
            visible=kernels.seen(own, layout, layout),
            bias=penalty if asked.alibi else None,
            soft_cap=None,
            **common,
        )

    mixed, back = jax.vjp(jax.jit(mix), *heads)
    return [np.asarray(part) for part in (mixed, *back(along))]


@pytest.mark.parametrize("name", ASKED)
def test_every_kernel_gives_the_same_numbers_and_gradients(name: str) -> None:
    asked = ASKED[name]
    expected = by_torch(asked, "reference")
    for found in (by_torch(asked, "fused"), by_flax(asked, "reference"), by_flax(asked, "fused")):
        assert difference(found[0], expected[0]) < FORWARD_FLOAT64
        for gradient, exact in zip(found[1:], expected[1:], strict=True):
            assert difference(gradient, exact) < GRADIENT_FLOAT64


@pytest.mark.parametrize("name", ASKED)
def test_cudnn_is_asked_for_what_the_reference_computes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arguments mean the same to JAX's own kernel, which sums in float32."""
    asked, calls = ASKED[name], []

    def own(*heads: jax.Array, implementation: str, **named: Any) -> jax.Array:
        calls.append(implementation)
        mixed: jax.Array = ask(*heads, implementation="xla", **named)
        return mixed

    ask = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", own)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(models.flax.kernels, "CUDNN_DTYPES", (np.float64,))
    expected, found = by_torch(asked, "reference"), by_flax(asked, "fused")
    suits = {"causal", "one key head", "window", "window across blocks", "both sides"}
    assert calls == (["cudnn"] if name in suits else [])
    for one, other in zip(found, expected, strict=True):
        assert difference(one, other) < 1e-5


def test_cudnn_is_not_asked_for_types_and_widths_that_it_has_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    place = jnp.arange(4)[None]
    layout = models.flax.layout.Layout(place, place, None, None, None)
    suited = [
        models.flax.kernels.suits_cudnn(jnp.zeros((1, 1, 4, width), dtype), layout, attention())
        for dtype, width in (
            ("bfloat16", 128),
            ("bfloat16", 136),
            ("bfloat16", 12),
            ("float32", 64),
        )
    ]
    assert suited == [True, False, False, False]


def test_a_position_that_sees_nothing_gets_zeros_and_finite_gradients() -> None:
    asked = ASKED["positions that see nothing"]
    for compute in (by_torch, by_flax):
        for kernel in ("reference", "fused"):
            mixed, *gradients = compute(asked, kernel)
            assert (mixed[1, :, 70 + 20 :] == 0).all()
            assert (mixed[0] != 0).all()
            assert all(np.isfinite(gradient).all() for gradient in gradients)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the largest tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return result


@pytest.mark.parametrize("name", ["window", "penalty", "documents", "prefix"])
def test_the_fused_kernel_never_holds_all_scores(name: str) -> None:
    asked = ASKED[name]
    everything = 2 * asked.attention.heads * LENGTH**2
    with Largest() as largest:  # type: ignore[no-untyped-call]
        by_torch(asked, "fused")
    assert largest.size < everything / 2
    with Largest() as largest:  # type: ignore[no-untyped-call]
        by_torch(asked, "reference")
    assert largest.size == everything
    assert largest_in_flax(asked, "fused") < everything / 2
    assert largest_in_flax(asked, "reference") == everything


def largest_in_flax(asked: Asked, kernel: str) -> int:
    """Values of the largest array of a traced forward and backward pass."""

    def sizes(jaxpr: Any) -> Iterator[int]:
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for inner in equation.params.values():
                inner = getattr(inner, "jaxpr", inner)
                yield from sizes(inner) if hasattr(inner, "eqns") else ()

    own = asked.attention
    fields: Any = (None if f is None else jnp.asarray(f) for f in layout_fields(asked))
    layout = models.flax.layout.Layout(*fields)
    *heads, _ = (jnp.asarray(part) for part in heads_of(asked))
    kernels = models.flax.kernels

    def mix(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        common: dict[str, Any] = {"scale": 0.4, "reduce": "float64"}
        if kernel == "fused":
            mixed = kernels.fused(
                query, key, value, layout, attention=own, alibi=asked.alibi, **common
            )
        else:
            visible = kernels.seen(own, layout, layout)
            mixed = kernels.written_out(*heads, visible=visible, bias=None, soft_cap=None, **common)
        return mixed.sum()

    return max(sizes(jax.make_jaxpr(jax.grad(mix, (0, 1, 2)))(*heads).jaxpr))


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": attention(soft_cap=1.0)},
        {"dropout": DropoutSpec(attention=0.1)},
        {"pattern": ({}, {"attention": {"soft_cap": 1.0}})},
    ],
)
def test_a_fused_kernel_is_refused_where_scores_are_needed(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"model\.execution\.kernel=fused .* use auto"):
        decoder(execution=ExecutionSpec(kernel="fused"), **changes)


def test_angles_first_used_in_inference_serve_training_too() -> None:
    spec = decoder(positions=Rope(base=123.0))
    weights = case_of(spec).weights
    model, tokens = torch_model(spec, weights), torch.tensor(case_of(spec).inputs)
    with torch.inference_mode():
        model.logits(tokens)
    weight = models.torch.weights.named_parameters(model)["layers.0.attention.query.weight"]
    (gradient,) = torch.autograd.grad(model.logits(tokens).sum(), [weight])
    assert gradient.abs().max() > 0


def test_casting_a_module_leaves_its_angles_alone() -> None:
    spec = decoder(inputs=TokenInputs(vocabulary=11, context=400))
    layer = models.torch.attention.Attention(
        spec, weight_table(spec), "layers.0.attention", POLICIES["bfloat16"], layer=0
    )
    layer.to(torch.bfloat16)
    tables = models.torch.attention.angles(
        layer.positions, layer.head_width, layer.inputs, layer.reduce, torch.device("cpu")
    )
    assert tables[0].dtype == torch.float32


# Decoding.

DECODED: dict[str, ModelSpec] = {
    **{
        name: ATTENTION[name]
        for name in (
            "written out",
            "window",
            "window of one",
            "one key head",
            "documents",
            "documents and window",
            "documents and penalty",
            "cap of scores, documents, window",
            "norm of each head",
            "norm of all heads",
            "penalty of six heads",
            "part of each head rotated",
            "yarn scaling of a part",
            "llama 3 scaling",
            "ntk scaling",
            "mup",
            "attention scale",
        )
    },
    "plain": decoder(),
    "no positions": decoder(positions=NoPositions()),
    "learned positions in documents": decoder(inputs=PACKED, positions=LearnedPositions()),
    "penalty and cap": decoder(positions=Alibi(), attention=attention(soft_cap=0.5)),
}
# Tokens of each of three rows that each call brings; a call is one or four positions wide.
CALLS = ((4, 2, 0), (1, 1, 1), (0, 1, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1))


def batch_of(spec: ModelSpec) -> tuple[Array, Array]:
    """Tokens, (3, 7), some of which end documents, and a residual stream."""
    generator = np.random.default_rng(6)
    tokens = generator.integers(0, 3, (3, 7))
    return tokens, generator.standard_normal((3, 7, spec.width))


def torch_model(spec: ModelSpec, weights: dict[str, Array]) -> models.torch.model.Model:
    model = models.torch.model.Model(spec, precision="float64")
    models.torch.weights.load_weights(model, weights)
    return model


def flax_model(spec: ModelSpec, weights: dict[str, Array]) -> models.flax.model.Model:
    model = models.flax.model.Model(spec, precision="float64")
    models.flax.weights.load_weights(model, weights)
    return model


Step = Callable[[Array, Array, Array], Array]


def torch_steps(spec: ModelSpec, weights: dict[str, Array], *, slots: int) -> Step:
    """Decoding by the torch twin: (tokens, x, lengths) -> y."""
    block: Any = torch_model(spec, weights).layers[0]
    layer = block.attention
    zeros = torch.zeros(3, dtype=torch.int32)
    state: list[Any] = [
        layer.empty_cache(3, length=slots),
        models.torch.layout.Cursor(zeros, zeros),
    ]

    def step(tokens: Array, x: Array, lengths: Array) -> Array:
        layout, state[1] = models.torch.layout.layout_after(
            spec, torch.tensor(tokens), state[1], lengths=torch.tensor(lengths)
        )
        filled = int(layout.place.max()) + 1
        y, state[0] = layer.decode(torch.tensor(x), layout, state[0], filled=filled)
        found: Array = y.detach().numpy()
        return found

    return step


def flax_steps(spec: ModelSpec, weights: dict[str, Array], *, slots: int) -> Step:
    """Decoding by the Flax twin: (tokens, x, lengths) -> y."""
    layer = flax_model(spec, weights).layers[0].attention
    zeros = jnp.zeros(3, jnp.int32)
    state: list[Any] = [
        layer.empty_cache(3, length=slots),
        models.flax.layout.Cursor(zeros, zeros),
    ]

    def step(tokens: Array, x: Array, lengths: Array) -> Array:
        layout, state[1] = models.flax.layout.layout_after(
            spec, jnp.asarray(tokens), state[1], lengths=jnp.asarray(lengths)
        )
        y, state[0] = layer.decode(jnp.asarray(x), layout, state[0])
        return np.asarray(y)

    return step


@pytest.mark.parametrize("steps", [torch_steps, flax_steps])
@pytest.mark.parametrize("name", DECODED)
def test_decoding_in_ragged_steps_is_the_whole_pass(name: str, steps: Any) -> None:
    spec = DECODED[name]
    weights = case_of(spec).weights
    tokens, x = batch_of(spec)
    whole = reference.attention(
        spec,
        weights,
        "layers.0.attention",
        x,
        places.layout_of(spec, tokens),
        None,
        layer=0,
    )
    found, done = np.full_like(whole, np.nan), np.zeros(3, int)
    step, rows = steps(spec, weights, slots=12), np.arange(3)[:, None]
    for lengths in CALLS:
        chosen = np.minimum(done[:, None] + np.arange(4 if max(lengths) > 1 else 1), 6)
        y = step(tokens[rows, chosen], x[rows, chosen], np.array(lengths))
        for row, length in enumerate(lengths):
            found[row, done[row] : done[row] + length] = y[row, :length]
        done += lengths
    assert (done == 7).all()
    assert difference(found, whole) < FORWARD_FLOAT64


@pytest.mark.parametrize("steps", [torch_steps, flax_steps])
@pytest.mark.parametrize("window", [None, 3])
def test_a_prompt_that_comes_whole_is_seen_whole(steps: Any, window: int | None) -> None:
    own = attention(mask=Prefix(end=1), window=window)
    spec = decoder(inputs=PROMPTED, attention=own)
    weights = case_of(spec).weights
    _, x = batch_of(spec)
    tokens = np.array([[2, 2, 1, 0, 1, 2, 1], [2, 1, 0, 0, 2, 2, 2], [2, 0, 2, 0, 1, 1, 1]])
    layout = places.layout_of(spec, tokens)
    whole = reference.attention(spec, weights, "layers.0.attention", x, layout, None, layer=0)
    step = steps(spec, weights, slots=8)
    calls = [slice(0, 5), slice(5, 6), slice(6, 7)]
    counts = [np.full(3, part.stop - part.start) for part in calls]
    found = [
        step(tokens[:, part], x[:, part], count) for part, count in zip(calls, counts, strict=True)
    ]
    assert difference(np.concatenate(found, axis=1), whole) < FORWARD_FLOAT64
