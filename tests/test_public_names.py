"""The names that ``import diffsynth`` offers, and what it does not drag in."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import diffsynth

HEAVY = ("torch", "numpy", "transformers", "PIL", "safetensors", "modelscope", "huggingface_hub")


def modules_after(program: str) -> set[str]:
    """Run a program in a fresh interpreter and return the modules it has imported."""
    command = f"{program}\nimport sys\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("name", diffsynth.__all__)
def test_every_public_name_exists_and_says_what_it_is(name: str) -> None:
    value = getattr(diffsynth, name)

    assert isinstance(value, str) or inspect.getdoc(value)


def test_the_public_names_are_sorted_and_listed() -> None:
    assert sorted(diffsynth.__all__) == list(diffsynth.__all__)
    assert set(diffsynth.__all__) <= set(dir(diffsynth))


@pytest.mark.parametrize("name", [name for name in diffsynth.__all__ if isinstance(getattr(diffsynth, name), type)])
def test_every_public_method_says_what_it_does(name: str) -> None:
    methods = inspect.getmembers(getattr(diffsynth, name), inspect.isfunction)

    assert [method for method, value in methods if not method.startswith("_") and not inspect.getdoc(value)] == []


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'diffsynth' has no attribute 'ModelManger'"):
        _ = diffsynth.ModelManger


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert modules_after("import diffsynth").isdisjoint(HEAVY)


def test_asking_the_command_line_for_help_imports_nothing_heavy() -> None:
    program = """
import runpy, sys
sys.argv = ["diffsynth", "--help"]
try:
    runpy.run_module("diffsynth", run_name="__main__")
except SystemExit as leaving:
    assert not leaving.code, leaving.code
"""
    assert modules_after(program).isdisjoint(HEAVY)


def test_the_command_line_can_be_started_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "diffsynth", "--help"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "inspect" in done.stdout
