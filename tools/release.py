"""Check the distributions in dist/: ``make release`` builds them and runs this.

Builds the source distribution beside the wheel, builds a wheel from it, which must hold the same files, installs that one
in an empty environment, and there runs what a newcomer would run first, from another folder. It tags nothing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

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
    """Build, install, run; an error of any command ends it."""
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
    print(f"checked: {wheel.name}, {source.name}. Next: update CHANGELOG.md and tag the commit.")


def _contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True)


if __name__ == "__main__":
    main()
