"""The baseline for images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tasks.evaluate.logistic import LogisticModel, fit_logistic
from tasks.prepare.dataset import open_split
from tests.tolerances import LOGISTIC


def test_digits_are_mostly_recognised_and_chances_sum_to_one(digits: Path) -> None:
    train, test = (open_split(digits, split, context=None) for split in ("train", "test"))
    fit, held = (part.read(np.arange(len(part))) for part in (train, test))
    pixels, held_out = (
        part.inputs.reshape(len(part.inputs), -1).astype(np.float64) for part in (fit, held)
    )
    model = fit_logistic(pixels, fit.targets, classes=10, penalty=1.0)
    logs = model.log_probabilities(held_out)
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1, rtol=LOGISTIC)
    assert (logs.argmax(axis=1) == held.targets).mean() > 0.9


@pytest.mark.parametrize("classes", [2, 3])
def test_chances_are_those_of_scikit_learn(classes: int, tmp_path: Path) -> None:
    rows = np.arange(90)
    pixels = np.sin(np.outer(rows, np.arange(1, 5)))
    targets = (rows + (pixels[:, 0] > 0)) % classes
    model = fit_logistic(pixels, targets, classes=classes, penalty=0.5)
    model.save(tmp_path / "model.safetensors")
    model = LogisticModel.load(tmp_path / "model.safetensors")
    judge = LogisticRegression(C=2.0, tol=1e-6, max_iter=2000).fit(pixels, targets)
    np.testing.assert_allclose(
        np.exp(model.log_probabilities(pixels)),
        judge.predict_proba(pixels),
        rtol=LOGISTIC,
    )


def test_a_class_without_a_training_image_is_refused() -> None:
    with pytest.raises(ValueError, match="no document of class 1"):
        fit_logistic(np.ones((4, 4)), np.array([0, 2, 0, 2]), classes=3, penalty=1.0)
