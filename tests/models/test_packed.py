"""What decoding holds in another order or type than training does, and that it loses nothing."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

from models.flax.attention import _written
from models.torch.decoder import Decoder
from models.torch.linear import linear, packed
from models.torch.model import Model
from models.torch.weights import load_weights
from tests.models.triangle import case_of, difference
from tests.models.variants.table import VARIANTS
from tests.tolerances import FORWARD_FLOAT32

NAMES = ("decoder", "attention bias", "head transform, bias and cap", "muP")


@pytest.mark.parametrize("name", NAMES)
def test_packed_matrices_answer_as_those_that_train(name: str) -> None:
    spec = VARIANTS[name]
    weights, tokens = case_of(spec).weights, np.array([[1, 2, 3], [3, 1, 0]])
    model = Model(spec)
    load_weights(model, weights)
    with torch.no_grad():
        expected = model.logits(torch.from_numpy(tokens))[:, -1].numpy()
    session = Decoder(spec, weights).open(tokens)
    assert difference(session.logits, expected) < FORWARD_FLOAT32


def test_a_decoder_holds_packed_matrices() -> None:
    decoder = Decoder(VARIANTS["decoder"], case_of(VARIANTS["decoder"]).weights)
    output = decoder.model.head.output.weight
    assert decoder.model.blocks()[0].attention.query.weight.is_mkldnn
    assert output is not None and output.is_mkldnn


def test_float64_is_not_packed() -> None:
    weight = torch.ones(2, 3, dtype=torch.float64)
    assert packed(weight) is weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_matrix_multiplies_whole_numbers_exactly(dtype: torch.dtype) -> None:
    weight = torch.arange(12.0).reshape(4, 3).to(dtype)
    x, bias = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=dtype), torch.tensor([1.0, 0.0, 2.0, 0.0])
    expected = torch.tensor([[[9.0, 26.0, 46.0, 62.0]]], dtype=dtype)
    assert torch.equal(linear(x, packed(weight), bias), expected)
    assert torch.equal(linear(x, weight, bias), expected)


def test_a_cache_of_bits_gives_back_what_was_written() -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 2, 4))
    new = jnp.asarray(values, jnp.bfloat16)
    place = jnp.array([[1, 2], [4, 5]])
    held = _written(jnp.zeros((2, 3, 6, 4), jnp.uint16), new, place)
    read = lax.bitcast_convert_type(held, jnp.bfloat16)
    for row in range(2):
        assert (read[row, :, place[row]].swapaxes(0, 1) == new[row]).all()
    assert (held != 0).sum() == (new != 0).sum()
