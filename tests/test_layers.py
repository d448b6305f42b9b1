"""Each module imports only from those above it, and the core imports no torch at all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "patchtree"
ORDER = (
    "errors",
    "turns",
    "process",
    "files",
    "tables",
    "pyramid",
    "tree",
    "block_sums",
    "noise",
    "detail",
    "refine",
    "patches",
    "ids",
    "patcher",
    "fidelity",
    "show",
    "io",
    "slides",
    "foveate",
    "blend",
    "slide_inference",
    "jobs",
    "eager",
    "tokens",
    "losses",
    "metrics",
    "models",
    "augment",
    "slide_sets",
    "channels",
    "dataset_json",
    "datasets",
    "labelled",
    "unlabelled",
    "cache",
    "mips",
    "slide_sources",
    "budget",
    "draws",
    "samples",
    "windows",
    "data",
    "image_data",
    "volume_data",
    "slide_data",
    "ema",
    "muon",
    "runs",
    "schedule",
    "tasks",
    "slide_evaluation",
    "inference",
    "image_inference",
    "options",
    "machines",
    "announce",
    "training",
    "cli",
    "__main__",
)
CORE = ORDER[: ORDER.index("eager")]
TORCH = {"torch", "torchvision", "torchmetrics", "timm", "lightning", "monai"}
# Tree.paint(values) is patches.paint(values, tree), and Patcher(slide) is patch_slide, where a user looks for them.
EXCEPTIONS = {
    ("tree", "Tree.paint", "patches"),
    ("patcher", "Patcher.__call__", "io"),
    ("patcher", "Patcher.__call__", "slides"),
}

# The package's own __init__ names everything, so it stands outside the order.
MODULES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def imports(source: str, package: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(where, dotted name) of every import in a module of `package`: in functions too, but not under TYPE_CHECKING."""

    def visit(node: ast.AST, where: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        here = ".".join(where)
        match node:
            case ast.Import(names=names):
                yield from ((here, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else ()
                stem = ".".join((*base, *([module] if module else [])))
                yield from ((here, f"{stem}.{alias.name}") for alias in names)
            case ast.If(test=test, orelse=orelse) if ast.unparse(test).endswith("TYPE_CHECKING"):
                for child in orelse:
                    yield from visit(child, where)
            case _:
                named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                for child in ast.iter_child_nodes(node):
                    yield from visit(child, (*where, node.name) if named else where)

    yield from visit(ast.parse(source), ())


def layer(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imported(module: Path) -> list[tuple[str, str]]:
    return list(imports((SOURCE / module).read_text(encoding="utf-8"), ("patchtree", *module.parts[:-1])))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_up(module: Path) -> None:
    mine = layer(module)
    assert mine in ORDER, f"{module} has no place in the order"
    for where, name in imported(module):
        parts = name.split(".")
        if parts[0] != "patchtree" or name == "patchtree.__version__":
            continue
        theirs = parts[1] if len(parts) > 1 else ""
        if (mine, where, theirs) in EXCEPTIONS:
            continue
        assert theirs in ORDER, f"{module} imports {name}: name the module it comes from"
        assert theirs == mine or ORDER.index(theirs) < ORDER.index(mine), f"{module} imports {name}, which is below it"


@pytest.mark.parametrize("module", [module for module in MODULES if layer(module) in CORE], ids=str)
def test_core_never_imports_torch(module: Path) -> None:
    assert not [name for _, name in imported(module) if name.split(".")[0] in TORCH]


def test_every_kind_of_import_is_seen() -> None:
    source = """
import os, patchtree.tree
from typing import TYPE_CHECKING
from . import images
from ..errors import InputError
if TYPE_CHECKING:
    import torch
else:
    import numpy
class Tree:
    def paint(self):
        from patchtree.patches import paint
"""
    assert list(imports(source, ("patchtree", "io"))) == [
        ("", "os"),
        ("", "patchtree.tree"),
        ("", "typing.TYPE_CHECKING"),
        ("", "patchtree.io.images"),
        ("", "patchtree.errors.InputError"),
        ("", "numpy"),
        ("Tree.paint", "patchtree.patches.paint"),
    ]
