"""Check the distributions in dist/: ``make release`` builds them and runs this.

Builds the source distribution beside the wheel, builds a wheel from it, which must hold the same files, installs that one
in an empty environment, and there runs what a newcomer would run first, from another folder. With ``--tag`` (``make
release TAG=1``) it tags the commit, which it pushes nowhere.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

import cdgrad

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
COMMANDS = (
    "--version",
    "--help",
    "plan quickstart --no-timing",
    "train quickstart --set schedule.epochs=1",
    "init mine",
    "plan mine.toml --no-timing",
    "inspect mine:build",
    "train mine.toml --set schedule.epochs=1",
)


def main() -> None:
    """Build, install, run and, where that is asked for, tag; an error of any command ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tag", action="store_true", help="tag the commit in the end")
    tag = _tag() if parser.parse_args().tag else ""
    _run(sys.executable, "-c", "from hatchling.build import build_sdist; build_sdist('dist')", cwd=ROOT)
    (wheel,) = DIST.glob("*.whl")
    (source,) = DIST.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder, "venv"), with_pip=True)
        binaries = Path(folder, "venv", "bin")
        build = ("wheel", "--quiet", "--no-deps", "--wheel-dir", "built")
        _run(str(binaries / "pip"), *build, str(source), cwd=Path(folder))
        (again,) = Path(folder, "built").glob("*.whl")
        if _contents(again) != _contents(wheel):
            sys.exit(
                f"{source.name} builds another wheel than {wheel.name}: see the build targets in pyproject.toml"
            )
        constraints = ("--constraint", str(ROOT / "constraints.txt"))
        _run(str(binaries / "pip"), "install", "--quiet", *constraints, f"{again}[study]", cwd=Path(folder))
        for arguments in COMMANDS:
            _run(str(binaries / "cdgrad"), *arguments.split(), cwd=Path(folder))
    print(f"checked: {wheel.name}, {source.name}")
    if tag:
        _run("git", "tag", "--annotate", "--message", f"cdgrad {tag.removeprefix('v')}", tag, cwd=ROOT)
        print(f"tagged {tag}; git push origin {tag} publishes it")


def _tag() -> str:
    """The version's tag; what keeps the commit from being tagged ends the release before anything is built."""
    version = cdgrad.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changes, re.MULTILINE):
        sys.exit(
            f"CHANGELOG.md has no section '## {version} (YYYY-MM-DD)': date it, commit, and release again"
        )
    if f"version: {version}\n" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8"):
        sys.exit(f"CITATION.cff does not have version {version}: set it, commit, and release again")
    if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, check=True, capture_output=True).stdout:
        sys.exit("the working tree has changes: commit them, and release again")
    return f"v{version}"


def _contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True)


if __name__ == "__main__":
    main()
