"""The map of the code names what exists, and its picture is drawn from imports without a circle."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
import imports  # noqa: E402


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "README.md"])
def test_every_path_that_the_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|evidence|tools|tests|docs|benchmarks)/[\w./-]+)`", text)
    missing = [name for name in named if not (ROOT / name).exists() and "NAME" not in name]
    assert not missing
    assert page != "docs/architecture.md" or len(set(named)) > 30


def test_the_study_tool_has_few_layers_and_no_circle():
    layers = imports.layers(imports.study())
    assert len(layers) <= 6
    assert layers[-1] == ["commands"]
    assert sum(map(len, layers)) <= 14


def test_the_picture_is_of_the_imports():
    assert "metrics" in imports.core()["ops"]
    assert "statistics" in imports.study()["report"]
    with pytest.raises(ValueError, match="circular imports: a -> b -> a"):
        imports.layers({"a": {"b"}, "b": {"a"}})


def test_arrows_that_follow_from_others_are_omitted():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert imports.needed(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_every_function_that_the_page_names_is_in_its_file():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| `(src/[\w./]+)` \| `(\w+)` \|$", text, re.MULTILINE)
    assert len(rows) == 6
    assert not [row for row in rows if f"def {row[1]}(" not in (ROOT / row[0]).read_text(encoding="utf-8")]
