"""The data report says what was found, as JSON and as one safe page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tasks.artifacts import SnapshotManifest
from tasks.prepare.report import write_report
from tasks.prepare.report_page import MOST_CLASSES, REST, write_data_page
from tasks.prepare.spec import SplitShares
from tasks.prepare.splits import SPLITS, Sorter, WrittenData
from tests.evaluate.test_report import HOSTILE, Outline
from tests.prepare.conftest import make, text_spec, texts
from tests.prepare.test_labels import ROWS, classes_spec, write_rows
from tests.prepare.test_prepare import write_texts


def report_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def test_what_was_dropped_is_named(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts", [*texts(), "", texts()[0]])
    make(text_spec(folder), tmp_path)
    report = report_of(tmp_path / "data")
    assert report["dropped"] == {"empty": ["0300.txt"], "duplicates": ["0301.txt"], "conflicts": []}
    page = (tmp_path / "data" / "report.html").read_text()
    assert "0300.txt" in page and "0301.txt" in page


def test_rows_are_named_by_their_number(tmp_path: Path) -> None:
    rows = [*ROWS[:6], ROWS[2], *ROWS[6:], {"text": "", "stars": 1}]
    make(classes_spec("jsonl", write_rows(tmp_path / "rows", rows, "jsonl")), tmp_path)
    report = report_of(tmp_path / "data")
    assert report["dropped"]["duplicates"] == ["rows.jsonl:7"]
    assert report["dropped"]["empty"] == ["rows.jsonl:92"]
    assert report["schema"] == {"text": "field", "stars": "label"}


def test_no_content_is_in_two_splits_and_alike_ones_are_counted(tmp_path: Path) -> None:
    # Every text twice, in other case and white space: many pairs fall apart.
    plain = texts()
    shouted = [text.upper().replace("\n", "\n\n ") for text in plain]
    folder = write_texts(tmp_path / "texts", [*plain, *shouted])
    make(text_spec(folder), tmp_path)
    report = report_of(tmp_path / "data")
    assert set(report["in_both_splits"].values()) == {0}
    # Of 300 pairs about 2 * 0.6 * 0.2 fall into train and test.
    assert 40 < report["alike_in_both_splits"]["train and test"] < 110
    folder = write_texts(tmp_path / "apart", plain)
    make(text_spec(folder), tmp_path / "again")
    assert report_of(tmp_path / "again" / "data")["alike_in_both_splits"]["train and test"] == 0


def test_a_document_in_two_splits_is_refused(tmp_path: Path) -> None:
    line = json.dumps({"id": "ab" * 32}) + "\n"
    for split, lines in zip(SPLITS, (line, "", line), strict=True):
        (tmp_path / f"{split}.documents.jsonl").write_text(lines)
    taken = SnapshotManifest(
        kind="text", source="s", files=(), documents=2, size_bytes=1, skipped={}, columns={},
        classes=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"dealt to two splits: .*'train and test': 1"):
        write_report(tmp_path, Sorter(SplitShares()), taken, WrittenData({}, ()))


def test_histograms_count_every_document(tmp_path: Path) -> None:
    make(classes_spec("jsonl", write_rows(tmp_path / "rows", ROWS, "jsonl")), tmp_path)
    report = report_of(tmp_path / "data")
    for split in SPLITS:
        held = report["splits"][split]
        assert sum(held["classes"].values()) == held["documents"]
        assert sum(held["bytes_at_most"].values()) == held["documents"]
        labels = np.load(tmp_path / "data" / f"{split}.labels.npy")
        counts = np.bincount(labels, minlength=3).tolist()
        assert [held["classes"].get(name, 0) for name in "012"] == counts


def large_report(*, classes: int) -> dict[str, Any]:
    """A report with hostile names and many classes."""
    splits = {
        split: {
            "documents": classes,
            "bytes_at_most": {"1": 3, "1024": 5},
            "classes": {f"{HOSTILE}{number}": number + 1 for number in range(classes)},
        }
        for split in SPLITS
    }
    pairs = {"train and test": 0}
    return {
        "source": HOSTILE,
        "schema": {HOSTILE: "field"},
        "files_skipped": {HOSTILE: 2},
        "documents": {"found": 9, "empty": 1, "duplicates": 2, "kept": 6},
        "dropped": {"empty": [HOSTILE], "duplicates": [HOSTILE]},
        "in_both_splits": pairs,
        "alike_in_both_splits": pairs,
        "splits": splits,
        "waste": {split: 0.25 for split in SPLITS},
        "parts": [{"weight": 1.5, "samples": {split: 3 for split in SPLITS}}],
    }


def test_nothing_from_the_data_becomes_markup_and_nothing_is_fetched(tmp_path: Path) -> None:
    write_data_page(tmp_path / "page.html", large_report(classes=5))
    text = (tmp_path / "page.html").read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert "script" not in outline.tags and "alert(" in text and "<script" not in text
    assert all(link.startswith(("#", "data:image/")) for link in outline.links)
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) == 2
    for figure in figures:
        assert "train" in "".join(ElementTree.fromstring(figure).itertext())


def test_many_classes_are_pooled(tmp_path: Path) -> None:
    write_data_page(tmp_path / "page.html", large_report(classes=500))
    page = (tmp_path / "page.html").read_text()
    assert REST in page and (tmp_path / "page.html").stat().st_size < 500_000
    assert page.count("alert(") < 10 * MOST_CLASSES


def test_equal_reports_give_equal_pages(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_data_page(tmp_path / name, large_report(classes=3))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
