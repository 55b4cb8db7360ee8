"""A trained model that answers token by token; what it has read stays in a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.decoding import check_decodable, pieces, slots
from models.inputs import check_indices, last_positions
from models.spec import ModelSpec, Precision, TokenInputs
from models.torch.layout import Cursor
from models.torch.linear import DTYPES, Linear, packed
from models.torch.model import Model
from models.torch.weights import load_weights


class Decoder:
    """Opens sessions; the weights are held once, a tied matrix for each of its uses."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, NDArray[Any]],
        *,
        precision: Precision = "float32",
    ) -> None:
        """Fill a model.

        Raises:
            ValueError: the model cannot answer token by token, or the weights are of another.
        """
        check_decodable(spec)
        self.spec = spec
        self.model = Model(spec, precision=precision)
        load_weights(self.model, weights)
        pack(self.model)

    def open(
        self, tokens: NDArray[np.int64], *, lengths: NDArray[np.int64] | None = None
    ) -> Session:
        """Read prompts.

        Args:
            tokens: (B, T), right-padded, T at most the context.
            lengths: tokens of each row that count, 1..T, (B,); None: all.

        Raises:
            ValueError: tokens or lengths do not fit the spec.
        """
        return Session(self, tokens, last_positions(tokens, lengths) + 1)


def pack(model: Model) -> None:
    """Pack a model's matrices, in the type that they are multiplied in; it no longer trains."""
    output, compute = model.head.output, DTYPES[model.policy.compute]
    matrix = model.tied if output.weight is None else output.weight
    assert matrix is not None
    for module in model.modules():
        if isinstance(module, Linear):
            weight = module.weight.to(compute)
            del module.weight
            module.weight = packed(weight)
    del output.weight
    output.weight = packed(matrix.to(compute))  # type: ignore[assignment]


class Session:
    """Rows of tokens that grow together.

    Attributes:
        logits: of the token that follows each row, (B, V).
        lengths: tokens of each row so far, (B,).
    """

    @torch.inference_mode()
    def __init__(
        self, decoder: Decoder, tokens: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        assert isinstance(decoder.spec.inputs, TokenInputs)
        self._decoder, self._inputs = decoder, decoder.spec.inputs
        batch, self._room = len(tokens), self._inputs.context
        self._caches = tuple(
            block.attention.empty_cache(batch, length=self._room)
            for block in decoder.model.blocks()
        )
        zeros = torch.zeros(batch, dtype=torch.int32)
        self._cursor = Cursor(zeros, zeros)
        self.lengths = np.zeros(batch, np.int64)
        for piece, counted in pieces(decoder.spec, tokens, lengths):
            self.logits = self._read(piece, counted)

    @torch.inference_mode()
    def feed(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        """Append one token to each row, (B,); the logits of what follows, (B, V).

        Raises:
            ValueError: a token is none of the vocabulary, or a row is as long as the context.
        """
        check_indices(tokens, count=self._inputs.vocabulary, name="token")
        if self.lengths.max() >= self._room:
            raise ValueError(
                f"a sequence must be at most model.inputs.context={self._room} tokens long."
            )
        self.logits = self._read(tokens[:, None], np.ones(len(tokens), np.int64))
        return self.logits

    def _read(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
        reached = int(self.lengths.max()) + tokens.shape[1]
        decoded = self._decoder.model.decode(
            torch.tensor(tokens.astype(np.int64)),
            self._caches,
            self._cursor,
            lengths=torch.tensor(lengths),
            filled=slots(reached, room=self._room),
        )
        self._caches, self._cursor = decoded.caches, decoded.cursor
        self.lengths = self.lengths + lengths
        logits: NDArray[Any] = decoded.logits.numpy()
        return logits
