"""Multinomial logistic regression: the baseline for classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tasks.evaluate.features import Features

MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class LogisticModel:
    """Linear class scores.

    Attributes:
        weight: (classes, features).
        bias: (classes,).
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def log_probabilities(self, features: Features) -> NDArray[np.float64]:
        """Log-probability of each class, (B, classes), for (B, features)."""
        return log_softmax(features @ self.weight.T + self.bias)

    def save(self, path: Path) -> None:
        """Write the arrays."""
        save_file({"weight": self.weight, "bias": self.bias}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        arrays = load_file(path)
        return cls(arrays["weight"], arrays["bias"])


def fit_logistic(
    features: Features, targets: NDArray[Any], *, classes: int, penalty: float
) -> LogisticModel:
    """Minimise the summed cross-entropy plus `penalty / 2` times the squared weights.

    Args:
        features: (B, features), dense or sparse.
        targets: (B,) classes, each of 0 .. classes - 1 at least once.
        classes: number of classes.
        penalty: strength of the squared penalty; biases are free.

    Raises:
        ValueError: a class has no training document, or the optimum was not reached.
    """
    from sklearn.linear_model import LogisticRegression

    missing = np.flatnonzero(np.bincount(targets, minlength=classes) == 0)
    if len(missing):
        raise ValueError(
            f"the training split has no document of class {int(missing[0])}; "
            "add some or drop the class."
        )
    fitted = LogisticRegression(C=1 / penalty, max_iter=MAX_ITERATIONS, tol=1e-6)
    fitted.fit(features, targets)
    if int(fitted.n_iter_.max()) >= MAX_ITERATIONS:
        raise ValueError(
            f"the logistic baseline did not converge in {MAX_ITERATIONS} iterations; raise "
            f"evaluate.baseline.penalty, got {penalty}."
        )
    weight, bias = fitted.coef_, fitted.intercept_
    if classes == 2:
        # scikit-learn keeps one row for two classes: the score of the second over the first.
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return LogisticModel(np.ascontiguousarray(weight), np.ascontiguousarray(bias))


def log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities over the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    logarithms: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logarithms
