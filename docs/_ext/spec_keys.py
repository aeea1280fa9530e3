"""The directive ``{spec-keys}``: the keys of a specification's table, from the dataclass that reads it.

``{spec-keys} cdgrad.study.spec:Task task`` lists every field: what it may be and its default from the field's
type and metadata, what it means from the ``Attributes:`` of the docstring. A field without words is an error.
"""

import json
import math
import re
from dataclasses import MISSING, Field, fields
from importlib import import_module
from itertools import groupby
from typing import ClassVar, get_type_hints

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_KINDS = {str: "a string", bool: "true or false", bool | None: "true or false", dict: "a table"}


class SpecKeys(SphinxDirective):
    required_arguments = 2
    option_spec: ClassVar = {}

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        cls = getattr(import_module(module), name)
        self.env.note_dependency(str(import_module(module).__file__))
        meanings, kinds = described(cls), get_type_hints(cls)
        listing = nodes.definition_list(classes=["spec-keys"])
        if wordless := [declared.name for declared in fields(cls) if declared.name not in meanings]:
            raise self.error(f"the docstring of {name} has no words for {wordless[0]}")
        # Keys that share their words share an entry.
        for words, group in groupby(fields(cls), lambda declared: meanings[declared.name]):
            terms = [self._term(declared, kinds[declared.name]) for declared in group]
            meaning = nodes.definition()
            self.state.nested_parse(StringList([words]), 0, meaning)
            listing += nodes.definition_list_item("", *terms, meaning)
        return [listing]

    def _term(self, declared: Field, kind: type) -> nodes.term:
        free = declared.name == "arguments"
        key = f"{self.arguments[1]}.{'KEY' if free else declared.name}".removeprefix("-.")
        rules = "any other key" if free else f"{allowed(declared, kind)}; {default(declared)}"
        return nodes.term("", "", nodes.literal("", key), nodes.Text(f" {rules}"))


def described(cls: type) -> dict[str, str]:
    """The words for each name under ``Attributes:`` of a class and its bases, as Markdown on one line."""
    section = "\n".join((base.__doc__ or "").partition("    Attributes:\n")[2] for base in cls.__mro__)
    words: dict[str, str] = {}
    for names, text in re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {12}.*)*)", section, re.MULTILINE):
        text = re.sub(r"``(.*?)``", r"`\1`", " ".join(text.split()))
        words |= dict.fromkeys(names.split(", "), text[0].upper() + text[1:])
    return words


def allowed(declared: Field, kind: type) -> str:
    rules = declared.metadata
    if "choices" in rules:
        forms = [*map(quoted, rules["choices"]), *(['"module:callable"'] if rules["importable"] else [])]
        return forms[0] if len(forms) == 1 else f"one of {', '.join(forms)}"
    if "some_of" in rules:
        return f"a list of {', '.join(map(quoted, rules['some_of']))}"
    if "positive" in rules:
        return "a positive number"
    if "within" in rules:
        low, below = rules["within"]
        return f"a number ≥ {low:g}" + (f" and < {below:g}" if below < math.inf else "")
    if "minimum" in rules:
        return f"an integer ≥ {rules['minimum']}" + (' or "all"' if rules.get("or_all") else "")
    return _KINDS[getattr(kind, "__origin__", kind)]


def default(declared: Field) -> str:
    if declared.default is MISSING and declared.default_factory is MISSING:
        return "required"
    value = declared.default if declared.default_factory is MISSING else declared.default_factory()
    return "optional" if value in ("", (), {}, None) else f"default {json.dumps(value)}"


def quoted(choice: str) -> str:
    return f'"{choice}"'


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("spec-keys", SpecKeys)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
