"""What a study has found so far: JSON lines, so that an interrupted study goes on where it was."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.study.timing import Timed
from benchmarks.study.trial import Ended

Found = Ended | Timed
LINE: TypeAdapter[Found] = TypeAdapter(Found)


class Journal:
    """An append-only file; one line is one result, found by the identity of what was asked."""

    def __init__(self, path: Path) -> None:
        """Read what is there. A last line that a crash cut short is dropped.

        Raises:
            ValueError: a line is no result; the message names it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._held = path, dict[str, Found]()
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                found = LINE.validate_json(line)
            except ValueError as error:
                raise ValueError(
                    f"{path}: line {number} is no result of a study; delete the line or name "
                    f"another file. {error}"
                ) from None
            self._held[found.identity] = found
        if len(whole) < len(content):
            os.truncate(path, len(whole))

    def get(self, identity: str) -> Found | None:
        """The result, if it was found before."""
        return self._held.get(identity)

    def add(self, found: Found) -> None:
        """Append a result; it survives a crash from here on."""
        with self._path.open("ab") as file:
            file.write(found.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._held[found.identity] = found
