"""Imports go down only, families do not know one another, and what is unsafe or loud is done nowhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "diffsynth"
LAYERS = {
    "errors": 0,
    "types": 0,
    "core": 1,
    "nn": 1,
    "schedulers": 1,
    "tokenizers": 1,
    "hub": 2,
    "models": 2,
    "lora": 2,
    "manager": 3,
    "converting": 3,
    "merging": 3,
    "pipelines": 4,
    "batch": 5,
    "training": 5,
    "serve": 6,
    "ui": 6,
    "cli": 7,
    "__main__": 8,
}
SIDE_BY_SIDE = ("models", "pipelines")  # their folders do not import one another
FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield every module of ours that a file imports, inside functions too, as its parts below ``diffsynth``."""
    package = ("diffsynth", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(parsed(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            names = [f"{module}.{alias.name}" for alias in node.names]
        yield from (tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "diffsynth")


def place(parts: tuple[str, ...]) -> str:
    """Return the folder or file directly below ``diffsynth``."""
    return parts[0].removesuffix(".py") if parts else ""


def test_a_file_imports_only_from_below_and_from_its_own_folder() -> None:
    wrong = []
    for path in FILES:
        here = place(path.relative_to(PACKAGE).parts)
        for parts in imported(path):
            there = place(parts)
            below = there in LAYERS and LAYERS[there] < LAYERS.get(here, 0)
            if not below and there != here and parts != ("__version__",):
                wrong.append(f"{path.relative_to(PACKAGE)} imports diffsynth.{'.'.join(parts)}")

    # the public names come from everywhere, when they are first used
    assert [line for line in wrong if not line.startswith("__init__.py")] == []


def test_folders_of_one_kind_do_not_import_one_another() -> None:
    wrong = []
    for path in FILES:
        kind, *rest = path.relative_to(PACKAGE).parts
        for parts in imported(path):
            folder = PACKAGE.joinpath(*parts[:2])
            if kind in SIDE_BY_SIDE and len(rest) > 1 and parts[0] == kind and folder.is_dir() and parts[1] != rest[0]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports diffsynth.{'.'.join(parts)}")

    assert wrong == []


def test_every_folder_and_file_has_a_layer() -> None:
    found = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith((".", "__"))}

    assert found - {"py.typed"} <= LAYERS.keys()


def test_core_names_no_family() -> None:
    families = [folder.name for folder in (PACKAGE / "models").iterdir() if (folder / "weights.py").is_file()]
    texts = {path.name: path.read_text("utf-8").lower() for path in (PACKAGE / "core").rglob("*.py")}

    assert families
    assert [(file, name) for file, text in texts.items() for name in (*families, "hunyuan") if name in text] == []


def callers(*names: str) -> list[str]:
    """Return the places where one of these functions is called."""
    return [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
    ]


def test_nothing_that_a_file_holds_is_ever_executed() -> None:
    assert callers("torch.load", "pickle.load", "pickle.loads", "eval", "exec", "os.system") == []


def test_only_the_command_line_prints() -> None:
    assert [place for place in callers("print") if not place.startswith("cli/")] == []


def test_every_file_says_what_it_is() -> None:
    assert [str(path) for path in FILES if not ast.get_docstring(parsed(path))] == []
