"""Throw-away projects: the real code, or a small pipeline with the real drivers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parents[2]
CODE = ("tasks", "models", "optim", "serving", ".dvc/config", ".dvc/.gitignore", ".dvcignore")

TINY: dict[str, Any] = {
    "data": {
        "source": {"kind": "jsonl", "path": "documents.jsonl"},
        "task": {"kind": "language", "tokenizer": {"kind": "byte_bpe", "vocabulary": 300}},
        "split": {"validation": 0.2, "test": 0.2},
    },
    "model": {
        "inputs": {"kind": "tokens", "vocabulary": 300, "context": 16},
        "width": 16,
        "layers": 1,
        "positions": {"kind": "rope"},
        "attention": {"heads": 2, "key_value_heads": 1, "mask": {"kind": "causal"}},
        "feed_forward": {"kind": "gated", "hidden": 32},
        "norm": {"kind": "rms"},
        "head": {"kind": "language"},
    },
    "optim": {
        "rule": {"kind": "adamw"},
        "schedule": {
            "peak": 3.0e-3,
            "curve": {"kind": "cosine", "warmup": {"kind": "linear", "steps": 2}},
        },
    },
    "train": {
        "backend": "torch",
        "steps": 6,
        "batch": 4,
        "seed": 0,
        "log_every_steps": 2,
        "validate_every_steps": 3,
        "validation_batches": 1,
        "checkpoint": {"every_steps": 2, "keep": 2},
    },
    "augment": {},
    "regularise": {},
    "evaluate": {"baseline": {"kind": "ngram", "order": 3}, "batch": 8, "max_documents": 20},
    "gate": {"resamples": 200},
    "registry": {},
}


def write_params(root: Path, params: dict[str, Any]) -> None:
    """Write `params.yaml`."""
    YAML().dump(params, root / "params.yaml")


def write_documents(path: Path, count: int) -> None:
    """JSONL of documents that differ from one another."""
    words = ("spam", "egg", "ham", "lobster", "thermidor", "sausage", "shrubbery")
    with path.open("w", encoding="utf-8") as file:
        for document in range(count):
            text = " ".join(words[(document * step) % len(words)] for step in range(1, 60))
            file.write(json.dumps({"text": f"document {document}\n{text}\n"}) + "\n")


def real_project(root: Path) -> Path:
    """This repository's pipeline and code on a tiny data set and model."""
    _copy_code(root)
    for name in ("dvc.yaml", "requirements.lock"):
        shutil.copy(REPOSITORY / name, root / name)
    write_params(root, TINY)
    write_documents(root / "documents.jsonl", 60)
    commit_all(root)
    return root


def toy_project(root: Path) -> Path:
    """Three quick stages of `toy_pipeline.py`: one looks outside, one works, one sums up."""
    _copy_code(root)
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), root / "toy_pipeline.py")
    shutil.copy(Path(__file__).with_name("toy.dvc.yaml"), root / "dvc.yaml")
    write_params(root, TINY)
    (root / "outside.txt").write_text("one two three\n")
    commit_all(root)
    return root


def commit_all(root: Path) -> None:
    """Commit everything that git does not ignore."""
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.invalid")
    for words in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "state")):
        subprocess.run(["git", *words], cwd=root, env=environment(), check=True)


def command(*words: str) -> list[str]:
    """A command line of this environment's Python: `dvc repro` and the like."""
    return [sys.executable, "-m", *words]


def environment() -> dict[str, str]:
    """The environment of a person who activated this virtual environment."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    git = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **git}


def run(root: Path, *words: str, timeout_s: float = 560) -> subprocess.CompletedProcess[str]:
    """Run a command in the project to its end."""
    return subprocess.run(
        command(*words),
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _copy_code(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        source, target = REPOSITORY / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (root / ".gitignore").write_text("artifacts/\n.tandem/\n__pycache__/\n")
