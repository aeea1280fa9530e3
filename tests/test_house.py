"""The limits of functions and files: 50 lines without the docstring, kernels excepted, and 350."""

import ast
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))
FUNCTION, FILE = 50, 350
KERNELS = {"triton/mean_sobolev.py: mean_sobolev"}  # a kernel is one compiled function


def code_lines(function):
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    lines = function.end_lineno - function.lineno + 1
    return lines - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)


@pytest.fixture(scope="module")
def functions():
    return {
        f"{path.parent.name}/{path.name}: {node.name}": code_lines(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_no_function_is_long(functions):
    assert len(functions) > 500
    assert {name for name, lines in functions.items() if lines > FUNCTION} <= KERNELS


def test_no_file_is_long():
    root = Path(__file__).parents[1] / "src" / "cdgrad"
    lengths = {
        str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES
    }
    assert {path for path, lines in lengths.items() if lines > FILE} == set()
