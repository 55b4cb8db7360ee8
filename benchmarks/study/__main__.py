"""Do the optimizers help? `python -m benchmarks.study`.

Every rule of `optim.rules` trains two small models through the engine of `tasks.train`: each is
tuned by the same list of peaks and judged by three other seeds, with AdamW's steps and in AdamW's
time. `--scale 1` takes about 40 minutes on two cores; `--scale` multiplies the steps and is all
that a larger study needs. Results are appended to `results.jsonl` as they come: the same command
goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.study.course import Study
from benchmarks.study.journal import Journal
from benchmarks.study.problems import PROBLEMS
from benchmarks.study.recipes import RECIPES
from benchmarks.study.written import markdown, write_study_page

RESULTS, TABLE, PAGE = "results.jsonl", "study.md", "study.html"


def main(arguments: Sequence[str] | None = None) -> None:
    """Study, print, and write down."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description="Do the optimizers help?"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps")
    parser.add_argument("--processes", type=int, default=2, help="runs at the same time")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--rules", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=Path("artifacts/study"))
    asked = parser.parse_args(arguments)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn()) as bar:
        phases = {}

        def progress(done: int, total: int, note: str = "") -> None:
            if note not in phases:
                phases[note] = bar.add_task(note)
            bar.update(phases[note], completed=done, total=total)

        findings = Study(
            Journal(asked.out / RESULTS),
            problems=asked.problems,
            rules=asked.rules,
            scale=asked.scale,
            processes=asked.processes,
            progress=progress,
        ).run()
    found = markdown(findings)
    (asked.out / TABLE).write_text(found, encoding="utf-8")
    write_study_page(asked.out / PAGE, findings)
    print(found)


if __name__ == "__main__":
    main()
