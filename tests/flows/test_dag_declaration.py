"""`dvc.yaml` says what the stages really read, import and write."""

from __future__ import annotations

import ast
import configparser
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.params import Params, read_yaml
from tasks.pipeline import STAGES
from tasks.places import Places
from tests.flows.project import REPOSITORY, TINY, write_params

DECLARED: dict[str, dict[str, Any]] = read_yaml(REPOSITORY / "dvc.yaml")["stages"]
PACKAGES = ("tasks", "models", "optim", "serving", "flows")
ENVIRONMENT = "requirements.lock"
# Sections that only effects read: serving a model changes nothing that a stage computes.
EFFECTS = {"serving", "rollout"}
# State that DVC must not watch: registry, step checkpoints.
UNVERSIONED = {"root", "scratch"}

each_stage = pytest.mark.parametrize("name", STAGES)


def test_every_stage_is_declared_and_starts_the_same_function() -> None:
    assert {name: stage["cmd"] for name, stage in DECLARED.items()} == {
        name: f"python -m tasks {name}" for name in STAGES
    }


@each_stage
def test_a_stage_declares_the_params_that_it_reads(name: str) -> None:
    assert read_from(name, "params") == set(DECLARED[name]["params"])


def test_a_section_that_a_stage_depends_on_may_be_empty_but_not_absent(tmp_path: Path) -> None:
    """DVC refuses a file without it, in the middle of a run."""
    named = {key.split(".")[0] for stage in DECLARED.values() for key in stage["params"]}
    required = {name for name, field in Params.model_fields.items() if field.is_required()}
    for name in named - required:
        sections = {section: keys for section, keys in TINY.items() if section != name}
        write_params(tmp_path, sections)
        with pytest.raises(ValueError, match=f"{name} is required, if empty; add `{name}: {{}}`"):
            Params.read(tmp_path / "params.yaml")
    write_params(tmp_path, TINY)
    assert Params.read(tmp_path / "params.yaml").gate.resamples == 200


@each_stage
def test_a_stage_declares_the_artifacts_that_it_reads_and_writes(name: str) -> None:
    places = Places(Path())
    touched = {str(getattr(places, place)) for place in read_from(name, "places") - UNVERSIONED}
    assert touched == artifacts(DECLARED[name]["deps"]) | written(name)


@each_stage
def test_a_stage_only_passes_its_arguments_on(name: str) -> None:
    # What a function of the table did beyond that, DVC would not see.
    body = adapter(name).body
    assert [type(statement) for statement in body] == [ast.ImportFrom, ast.Return]
    call = body[1].value  # type: ignore[attr-defined]
    assert isinstance(call, ast.Call)
    for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
        passed = ast.unparse(argument)
        assert isinstance(argument, ast.Attribute) or passed in {"progress", "fan_out"}


@each_stage
def test_a_stage_depends_on_all_code_that_it_imports_and_on_no_other(name: str) -> None:
    declared = code(DECLARED[name]["deps"])
    imported = imports_of(verb_module(name))
    missing = {module for module in imported if not any(covers(dep, module) for dep in declared)}
    needless = {dep for dep in declared if not any(covers(dep, module) for module in imported)}
    assert not missing, f"dvc.yaml: stages.{name}.deps lacks {sorted(missing)}"
    assert not needless, f"dvc.yaml: stages.{name}.deps has no use for {sorted(needless)}"


@each_stage
def test_a_stage_depends_on_the_installed_versions(name: str) -> None:
    assert ENVIRONMENT in DECLARED[name]["deps"]


def test_every_section_belongs_to_stages_or_to_effects() -> None:
    watched = {key.split(".")[0] for stage in DECLARED.values() for key in stage["params"]}
    assert watched.isdisjoint(EFFECTS)
    assert watched | EFFECTS == set(Params.model_fields)


def test_the_params_file_spells_out_what_dvc_watches() -> None:
    # DVC refuses a stage whose key is not in the file, whatever default the Spec has.
    for overlay in (REPOSITORY / "params.yaml", *(REPOSITORY / "params").glob("*.yaml")):
        sections = read_yaml(overlay)
        if set(sections) < set(read_yaml(REPOSITORY / "params.yaml")):
            continue
        for stage in DECLARED.values():
            for key in stage["params"]:
                value: Any = sections
                for part in key.split("."):
                    assert part in value, f"{overlay.name}: {key}"
                    value = value[part]


def test_plots_show_what_stages_write() -> None:
    outs = {out for name in DECLARED for out in written(name)}
    plots = read_yaml(REPOSITORY / "dvc.yaml")["plots"]
    shown = {file for plot in plots for settings in plot.values() for file in settings["y"]}
    assert shown
    assert all(any(covers(out, file) for out in outs) for file in shown)


def test_dvc_reports_nothing_and_makes_no_symlinks() -> None:
    config = configparser.ConfigParser()
    config.read_string(textwrap.dedent((REPOSITORY / ".dvc" / "config").read_text()))
    assert dict(config["core"]) == {
        "analytics": "false",
        "check_update": "false",
        "autostage": "false",
    }
    assert config["cache"]["type"] == '"reflink,copy"'


def adapter(name: str) -> ast.FunctionDef:
    """The function of the stage table, without its docstring."""
    (function,) = ast.parse(inspect.getsource(STAGES[name])).body
    assert isinstance(function, ast.FunctionDef)
    if ast.get_docstring(function) is not None:
        del function.body[0]
    return function


def read_from(name: str, record: str) -> set[str]:
    """Dotted attributes that the stage's function reads from one of its arguments."""
    found = {
        ast.unparse(node).removeprefix(f"{record}.")
        for node in ast.walk(adapter(name))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(f"{record}.")
    }
    # Of `data.source`, keep no `data`.
    return {path for path in found if not any(other.startswith(f"{path}.") for other in found)}


def artifacts(paths: list[str]) -> set[str]:
    return {path for path in paths if path.startswith("artifacts/")}


def code(paths: list[str]) -> set[str]:
    return set(paths) - artifacts(paths) - {ENVIRONMENT}


def written(name: str) -> set[str]:
    return {*DECLARED[name]["outs"], *DECLARED[name].get("metrics", [])}


def covers(dep: str, path: str) -> bool:
    return path == dep or path.startswith(f"{dep}/")


def verb_module(name: str) -> str:
    (statement,) = (node for node in ast.walk(adapter(name)) if isinstance(node, ast.ImportFrom))
    assert statement.module is not None
    return statement.module


def imports_of(module: str) -> set[str]:
    """Files of this repository whose code a module may use.

    A package's `__init__.py` counts where something is imported from the package itself, not
    where it is only passed on the way to a module: nothing happens at import.
    """
    waiting, found = [file_of(module)], set[str]()
    while waiting:
        path = waiting.pop()
        if path is not None and path not in found:
            found.add(path)
            waiting += named_in(path)
    return {path for path in found if len(ast.parse((REPOSITORY / path).read_bytes()).body) > 1}


def named_in(path: str) -> Iterator[str | None]:
    """Files of this repository that a file's import statements name."""
    waiting: list[ast.AST] = [ast.parse((REPOSITORY / path).read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{path}: relative import"
            for alias in node.names:
                yield file_of(f"{node.module}.{alias.name}") or file_of(node.module)
        elif isinstance(node, ast.Import):
            yield from (file_of(alias.name) for alias in node.names)


def file_of(module: str) -> str | None:
    """Path of one of this repository's modules; None for other modules and for other names."""
    stem = module.replace(".", "/")
    found = (path for path in (f"{stem}.py", f"{stem}/__init__.py") if is_file(path))
    return next(found, None) if module.split(".")[0] in PACKAGES else None


def is_file(path: str) -> bool:
    return (REPOSITORY / path).is_file()
