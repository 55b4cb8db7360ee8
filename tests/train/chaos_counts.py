"""How often proofs try their luck, and what they count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# `make proof` with TANDEM_PROOF_ROUNDS=10 tries its luck ten times as often.
ROUNDS = int(os.environ.get("TANDEM_PROOF_ROUNDS", "1"))


def tell(record: Callable[[str, object], None], what: str, **counts: object) -> None:
    """Report counts, to people (`pytest -rP`) and to the report of the tests."""
    for name, count in counts.items():
        record(name, count)
    print(f"{what}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


def series(
    module: str, *arguments: object, timeout_s: float, without: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """What a module of the tester says, line by line, in an interpreter of its own.

    Args:
        without: variables of the environment that it does not see.
    """
    ended = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in without},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
