"""Each import contract of pyproject.toml fails as soon as one line is added the wrong way."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRONG = {
    "layers": ("selection.py", "from cdgrad.commands import arguments"),
    "study-layers": ("study/records/store.py", "from cdgrad.study.report import text"),
    "door": ("study/train/epoch.py", "from cdgrad.attachment import attach"),
    "metrics-without-tensors": ("metrics.py", "import torch"),
    "jax-without-torch": ("optax/blocks.py", "from cdgrad.metrics import Metric\nimport torch"),
    "torch-without-jax": ("ops/eager.py", "import jax"),
}


def lint(folder):
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as c; c()",
        "--no-cache",
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "src/cdgrad", folder / "cdgrad", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_every_contract_is_tried():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["id"] for contract in contracts} == WRONG.keys()


def test_the_contracts_hold(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(WRONG)} kept, 0 broken." in done.stdout


@pytest.mark.parametrize("contract", WRONG)
def test_a_line_the_wrong_way_breaks_the_contract(copy, contract):
    declared = tomllib.loads((copy / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    names = {each["id"]: each["name"] for each in declared}
    file, line = WRONG[contract]
    path = copy / "cdgrad" / file
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n{line}\n", encoding="utf-8")
    try:
        done = lint(copy)
    finally:
        path.write_text(before, encoding="utf-8")
    assert done.returncode == 1
    assert f"{names[contract]} BROKEN" in done.stdout
