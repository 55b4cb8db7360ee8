"""The page of a run is one safe file that shows what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tasks.artifacts import TrainingReport
from tasks.train.curves import CurveRow
from tasks.train.report import FIGURES, write_training_page

HOSTILE = "</title></svg><script>alert('$x^2$')</script>&\"'"
REPORT = TrainingReport(
    backend="flax",
    steps=40,
    samples=320,
    tokens=10240,
    parameters=12345,
    seconds=754.0,
    tokens_per_s=13.6,
    train_loss=2.5,
    validation_loss=2.75,
    resumed_from_step=None,
)
MORE = {"mfu": 0.4, "data_wait": 0.1, "expert_imbalance": 1.5, "expert_dropped": 0.0}


def row(step: int, **changes: Any) -> CurveRow:
    measured = {
        "step": step,
        "tokens": step * 256,
        "loss": 5.0 - step / 20,
        "validation_loss": 5.1 - step / 20 if step % 20 == 0 else None,
        "objective": 5.0,
        "rate": 1e-3,
        "gradient_norm": 0.5 + step,
        "tokens_per_s": 1000.0,
    }
    return CurveRow.model_validate(measured | changes)


CURVE = [row(step) for step in range(10, 50, 10)]
EVENTS: list[dict[str, Any]] = [
    {"time": "10:00", "event": "started", "message": "starts at step 0", "step": 0},
    {"time": "10:01", "event": "resumed", "message": HOSTILE, "step": 20},
]


def page(folder: Path, curve: list[CurveRow] = CURVE, events: list[Any] = EVENTS) -> str:
    write_training_page(folder / "training.html", report=REPORT, curve=curve, events=events)
    return (folder / "training.html").read_text(encoding="utf-8")


def figures(text: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)


def test_the_page_says_what_the_numbers_say(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "40 steps of a model with 12,345 parameters on 10,240 positions in 13 min" in text
    assert "validation loss 2.7500 nats" in text
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles[:4] == ["Loss", "Learning rate", "Gradient norm", "Speed"]
    assert titles[4:] == ["What happened", "The run"]
    assert len(figures(text)) == 4


def test_what_was_measured_beyond_that_gets_a_figure(tmp_path: Path) -> None:
    text = page(tmp_path, [row(1, **MORE), row(2, **MORE)])
    assert len(figures(text)) == len(FIGURES) == 6
    assert "waiting for data" in text and "imbalance" in text


def test_nothing_from_a_run_becomes_markup_and_nothing_is_fetched(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "<script" not in text and "alert(" in text
    assert "default-src &#x27;none&#x27;" in text
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'<> ]+", text)) <= namespaces
    # Also well-formed: whatever a message holds, it cannot close an element.
    ElementTree.fromstring(text[text.index("<main>") : text.index("</body>")])


def test_events_are_marked_at_their_steps_but_not_those_of_every_run(tmp_path: Path) -> None:
    first, marked = page(tmp_path, events=[]), page(tmp_path)
    assert figures(first)[0].count("stroke: #dc2626") == 0
    assert figures(marked)[0].count("stroke: #dc2626") == 1
    assert "> 2</text>" in figures(marked)[0]
    assert "starts at step 0" in marked
    assert figures(page(tmp_path, events=EVENTS[:1]))[0].count("#dc2626") == 0


@pytest.mark.parametrize("value", [0.0, 2.0, 1e-12])
def test_curves_without_a_rise_can_be_drawn(tmp_path: Path, value: float) -> None:
    flat = {"loss": value, "gradient_norm": value, "tokens_per_s": value, "rate": value}
    assert len(figures(page(tmp_path, [row(1, **flat)]))) == 4


def test_equal_numbers_give_equal_bytes(tmp_path: Path) -> None:
    assert page(tmp_path) == page(tmp_path)
