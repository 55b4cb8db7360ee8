"""Rules in one pass over memory: what operations compute, value by value, and planted mistakes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from optim import native
from optim.rules import AdamW, Adan, AnyRule, Lion, Muon, ScheduleFree, SophiaG
from optim.torch.optimizer import RuleOptimizer
from tests.optim.rule_runs import VARIANTS

KNOWN = {name: rule for name, rule in VARIANTS.items() if native.knows(rule)}
# Odd sizes, less than a vector, more than a piece of `update.c`.
SIZES = (1, 7, 33_000, 70_001)
MARGIN = 64
SOURCES = Path(native.__file__).parent


def test_the_kernels_are_there() -> None:
    assert native.LIBRARY is not None, "Compile them: make run and make test do, as pip install."
    assert {rule.kind for rule in KNOWN.values()} == {
        "sgd",
        "adamw",
        "lion",
        "adan",
        "sophia_g",
        "sophia_h",
    }


def run(rule: AnyRule, dtype: torch.dtype, *, sizes: tuple[int, ...] = SIZES) -> list[torch.Tensor]:
    """Weights and slots after five steps, with what lies around the weights."""
    generator = torch.Generator().manual_seed(0)

    def drawn(size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=dtype)

    around = [drawn(size + 2 * MARGIN) for size in sizes]
    weights = [torch.nn.Parameter(each[MARGIN:-MARGIN]) for each in around]
    optimizer = RuleOptimizer([{"params": weights, "decay": 0.1, "share": 0.5}], rule)
    for step in range(5):
        for weight in weights:
            weight.grad = drawn(len(weight))
        estimates = {weight: drawn(len(weight)) for weight in weights}
        due = rule.kind.startswith("sophia") and step % 2 == 0
        optimizer.set_step(step, rate=0.1, curvature=estimates if due else None)
        optimizer.step()
    return around + [slot for weight in weights for slot in optimizer.state[weight].values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", KNOWN)
def test_one_pass_is_the_operations(
    variant: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(KNOWN[variant], dtype)
    monkeypatch.setattr(native, "LIBRARY", None)
    asked = run(KNOWN[variant], dtype)
    # torch's square root is not the nearest one.
    roundings = 64 if KNOWN[variant].kind in ("adamw", "adan") else 0
    for one, other in zip(found, asked, strict=True):
        band = roundings * torch.finfo(dtype).eps
        torch.testing.assert_close(one, other, rtol=band, atol=band)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = run(Adan(), torch.float32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for one, other in zip(run(Adan(), torch.float32), asked, strict=True):
        assert torch.equal(one, other)


def test_a_value_is_updated_alike_wherever_it_lies() -> None:
    """Vectors and what is left over at the end round alike: slices of ZeRO do as the whole."""
    weight, gradient = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))

    def stepped(cut: slice) -> torch.Tensor:
        part = torch.nn.Parameter(weight[cut].clone())
        part.grad = gradient[cut].clone()
        optimizer = RuleOptimizer([{"params": [part]}], Adan())
        for step in range(3):
            optimizer.set_step(step, rate=0.1)
            optimizer.step()
        return part.detach()

    whole = stepped(slice(None))
    for start in range(0, 40, 3):
        assert torch.equal(stepped(slice(start, start + 37)), whole[start : start + 37])


@pytest.mark.parametrize("rule", [Muon(), ScheduleFree(), Lion(cautious=True)])
def test_what_looks_at_whole_weights_is_not_known(rule: AnyRule) -> None:
    assert not native.knows(rule)


@pytest.mark.parametrize("kind", ["sixteen bits", "columns", "gradient of sixteen bits"])
def test_what_lies_otherwise_takes_operations(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("One pass was taken.")

    monkeypatch.setattr(native, "update", refuse)
    values = torch.ones(4, 3)
    match kind:
        case "sixteen bits":
            weight = torch.nn.Parameter(values.bfloat16())
        case "columns":
            weight = torch.nn.Parameter(torch.ones(3, 4).T)
        case _:
            weight = torch.nn.Parameter(values)
            weight.grad_dtype = torch.bfloat16
    before = weight.detach().clone()
    weight.grad = torch.ones_like(weight, dtype=weight.grad_dtype)
    optimizer = RuleOptimizer([{"params": [weight]}], Lion())
    optimizer.set_step(0, rate=0.5)
    optimizer.step()
    assert torch.equal(weight.detach(), before - 0.5)


class Mutant(NamedTuple):
    """An edit of `rules.h` or `update.c`, and a variant whose run must notice."""

    variant: str
    before: str
    after: str


MUTANTS = [
    Mutant("sgd", "momentum * velocity[i] + g", "momentum * velocity[i] - g"),
    Mutant("sgd_nesterov_decoupled", "g + momentum * velocity[i];", "velocity[i];"),
    Mutant("adam_coupled", "decoupled ? gradient[i]", "1 ? gradient[i]"),
    Mutant("adamw_uncorrected", "seen2) + epsilon)", "seen2 + epsilon))"),
    Mutant("adamw_uncorrected", "new2 * (g * g)", "new2 * g"),
    Mutant("lion", "(REAL)(ahead > 0)", "(REAL)(ahead >= 1e-3)"),
    Mutant("lion", "beta2 * momentum[i] + new2", "beta1 * momentum[i] + new1"),
    Mutant("adan", "last[i] = g;", ""),
    Mutant("adan", "look = g + ahead * change", "look = g + new2 * change"),
    Mutant("adan_not_proximal", "proximal ?", "1 ?"),
    Mutant("adan_corrected", "of[11]", "of[9]"),
    Mutant("sophia_g", "estimate && i < to", "0 && i < to"),
    Mutant("sophia_g", "direction < -clip ? -clip", "direction < -clip ? clip"),
    Mutant("sophia_g_often", "divisor < epsilon ? epsilon", "divisor < epsilon ? -epsilon"),
    Mutant("sophia_h", "w[i] - decayed * w[i]", "w[i]"),
    Mutant("lion", "to < line->size ? to : line->size", "from + 1"),
    Mutant("lion", "line == work->lines + work->count - 1", "line == work->lines"),
]


@pytest.fixture(scope="module")
def compiler() -> str:
    """A C compiler, which whoever installs the project has."""
    found = shutil.which("cc")
    assert found is not None
    return found


def built(folder: Path, compiler: str) -> ctypes.CDLL:
    """The sources of a folder, compiled as they stand: no vectors, nothing reordered."""
    library = folder / "update.so"
    flags = ["-O0", "-shared", "-fPIC", "-pthread", "-ffp-contract=off"]
    subprocess.run([compiler, *flags, folder / "update.c", "-lm", "-o", library], check=True)
    return native.typed(ctypes.CDLL(str(library)))


@pytest.mark.parametrize("variant", KNOWN)
def test_no_compiler_changes_a_bit(
    variant: str, compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = run(KNOWN[variant], torch.float32)
    shutil.copytree(SOURCES, tmp_path / "sources")
    monkeypatch.setattr(native, "LIBRARY", built(tmp_path / "sources", compiler))
    found = run(KNOWN[variant], torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(found, asked, strict=True))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.variant}: {m.before} -> {m.after}")
def test_a_planted_mistake_is_found(
    mutant: Mutant, compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = 0
    for name in ("rules.h", "update.c"):
        text = (SOURCES / name).read_text()
        edited += mutant.before in text
        (tmp_path / name).write_text(text.replace(mutant.before, mutant.after))
    assert edited == 1, f"{mutant.before!r} is no longer in one file: edit the mutant."
    rule = VARIANTS[mutant.variant]
    monkeypatch.setattr("optim.torch.adamw.is_fused", lambda *given: False)
    asked = run(rule, torch.float64)
    monkeypatch.setattr(native, "LIBRARY", built(tmp_path, compiler))
    found = run(rule, torch.float64)
    assert not all(
        torch.allclose(one, other, rtol=1e-6, atol=1e-6)
        for one, other in zip(found, asked, strict=True)
    )


def test_the_rules_of_the_bench_are_known() -> None:
    """What docs/bench/optim.md times is what training runs."""
    for rule in (AdamW(), Lion(), Adan(), SophiaG()):
        assert native.knows(rule)
