"""What was found in the data: `report.json` for programs and `report.html` for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from models.record import write_atomically
from tasks.artifacts import SnapshotManifest, SplitName
from tasks.prepare.splits import SPLITS, Sorter, WrittenData

REPORT = "report.json"
PAGE = "report.html"


def write_report(
    folder: Path, sorter: Sorter, taken: SnapshotManifest, written: WrittenData
) -> None:
    """Look at the splits as they were written, and write both reports.

    Raises:
        ValueError: a document is in two splits; the splits could not be trusted.
    """
    # Imported here, so that reading a data set loads no plotting library.
    from tasks.prepare.report_page import write_data_page

    ids = {split: _ids(folder, split) for split in SPLITS}
    leaks = {
        f"{one} and {other}": len(ids[one] & ids[other]) for one, other in combinations(SPLITS, 2)
    }
    if any(leaks.values()):
        raise ValueError(f"documents were dealt to two splits: {leaks}. Prepare the data again.")
    report: dict[str, Any] = {
        "source": taken.source,
        "schema": taken.columns,
        "files_skipped": taken.skipped,
        "documents": {
            "found": taken.documents,
            "empty": sorter.empty,
            "duplicates": sorter.duplicates,
            "duplicates_of_another_class": sorter.conflicts,
            "kept": sum(sorter.documents.values()),
        },
        "dropped": sorter.named,
        "in_both_splits": leaks,
        "alike_in_both_splits": sorter.alike(),
        "splits": {
            split: {
                "documents": sorter.documents[split],
                "bytes_at_most": {
                    str(bucket): count for bucket, count in sorted(sorter.lengths[split].items())
                },
                "classes": dict(sorted(sorter.classes[split].items())),
            }
            for split in SPLITS
        },
        "waste": None if written.rows is None else written.rows.waste,
        "parts": [part.model_dump() for part in written.parts or ()],
    }
    write_atomically(folder / REPORT, json.dumps(report, indent=2).encode() + b"\n")
    write_data_page(folder / PAGE, report)


def _ids(folder: Path, split: SplitName) -> set[bytes]:
    return {bytes.fromhex(line["id"]) for line in _lines(folder / f"{split}.documents.jsonl")}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for line in lines:
            yield json.loads(line)
