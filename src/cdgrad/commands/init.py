"""``cdgrad init``: a commented specification to start from, and the code that it names."""

from __future__ import annotations

import argparse
import keyword
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from cdgrad.commands.arguments import UsageError
from cdgrad.study import StudyError

HELP = "write a commented specification to start from"
DESCRIPTION = (
    "Write NAME.toml and NAME.py into the current folder: a study to edit, which runs unchanged on the "
    "embedded digits. Existing files are never overwritten."
)
TEMPLATES = {
    "network": "a network of your own in the built-in training loop, on your folder of images",
    "training": "your own data loader and training loop, with and without a metric",
    "optimizers": "two or more optimizers in your own training code, without a metric",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("name", metavar="NAME", help="name of the study: letters, digits and underscores")
    parser.add_argument(
        "--template",
        choices=tuple(TEMPLATES),
        default="network",
        help="; ".join(f"{name}: {words}" for name, words in TEMPLATES.items()) + " (default: network)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the two files, unless one exists."""
    name: str = options.name
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name):
        raise UsageError(f"NAME must be a module name (letters, digits and underscores); got {name!r}")
    files = [Path(f"{name}.toml"), Path(f"{name}.py")]
    if existing := [str(file) for file in files if file.exists() or file.is_symlink()]:
        raise StudyError(f"{' and '.join(existing)} exists already; choose another NAME, or move it away")
    # A folder without code is a module, too, and has no origin.
    if name in (*sys.stdlib_module_names, "__main__") or ((found := find_spec(name)) and found.origin):
        raise UsageError(f"{name!r} is the name of an installed module; choose another NAME")
    folder = resources.files("cdgrad.commands") / "templates"
    written: list[Path] = []
    for file in files:
        text = (folder / f"{options.template}{file.suffix}").read_text(encoding="utf-8")
        try:
            with file.open("x", encoding="utf-8") as stream:  # never over a file that has just appeared
                written.append(file)
                stream.write(text.replace("NAME", name))
        except OSError as error:
            for each in written:
                each.unlink(missing_ok=True)
            raise StudyError(f"cannot write {file}: {error.strerror}") from error
    print(
        f"written: {files[0]}, {files[1]}\n"
        f"edit them, or try them as they are: cdgrad plan {files[0]} says what the study would do, and\n"
        f"cdgrad study {files[0]} runs it"
    )
    return 0
