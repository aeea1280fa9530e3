"""A finished run is never lost: neither to a failed repeat, nor to a program that locks the records."""

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_study import in_this_process

from cdgrad import cli
from cdgrad.study import StudyError
from cdgrad.study.files import LOGS
from cdgrad.study.plan.plan import Plan
from cdgrad.study.records import FILE, Run, Store, order
from cdgrad.study.run.driver import add_when_unlocked, run_study
from cdgrad.study.run.progress import Lines
from cdgrad.study.spec import Spec, parse

TUNED = """
baseline = "a"
seeds = 2
entry = "repeated_entry:run"
arms.a = {}
[tuning]
trials = 2
seeds = [9]
space."values.lr" = { choices = [1, 2] }
points.a = [{ "values.lr" = 1 }, { "values.lr" = 2 }]
"""
CODE = """
def run(seed, arm):
    return {"error": (10 if seed == 9 else FINAL) / arm.values["lr"]}
"""


def test_a_failed_repeat_loses_no_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A second trial is better, and each final run fails with what it chose."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"

    def study(text: str, final: str) -> list[Run]:
        Path("repeated_entry.py").write_text(CODE.replace("FINAL", final))
        sys.modules.pop("repeated_entry", None)
        return run_study(
            parse(text, "mine"), out, 1, in_this_process, keep_going=True, allow_code_change=True
        )

    def said(*command: str) -> str:
        assert cli.main([*command]) == 0
        return capsys.readouterr().out

    study(TUNED.replace("trials = 2", "trials = 1").replace(', { "values.lr" = 2 }', ""), "8")
    executed = study(TUNED, "arm.values['absent']")
    assert [(run.trial, run.status) for run in executed] == [(1, "ok"), (None, "failed"), (None, "failed")]
    with Store(out, write=False) as store:
        assert [(run.trial, run.error) for run in store.runs()] == [(None, 8), (None, 8), (0, 10), (1, 5)]
    assert "0 of 2 runs finished" in said("report", "out")
    assert "a, seed 1: its repeat failed; the earlier result is kept\n2 failed" in said("log", "out")
    assert said("log", "out", "seed", "1").endswith("KeyError: 'absent'\n")
    assert [run.error for run in study(TUNED, "8")] == [4, 4]
    assert not (out / LOGS).exists()


def test_a_failed_run_replaces_a_failed_one_alone(tmp_path: Path, make_run: Callable[..., Run]):
    kept = [make_run("sgd", 0, 3.0), make_run("sgd", 1, 90.0, status="diverged")]
    kept.append(make_run("sgd", 0, 4.0, trial=0, evaluated="validation"))
    with Store(tmp_path, write=True) as store:
        digest = store.use_spec("tiny", "text")
        for run in kept:
            store.add(run, digest)
            store.add(replace(run, status="failed", error=None, message="no memory"), digest)
        assert sorted(store.runs(), key=order) == sorted(kept, key=order)


def test_a_link_to_records_that_are_absent_is_never_replaced_by_an_empty_file(tmp_path: Path):
    (tmp_path / FILE).symlink_to(tmp_path / "another-disk" / FILE)
    with pytest.raises(StudyError, match="cannot be used: unable to open database file"):
        Store(tmp_path, write=True)
    assert (tmp_path / FILE).is_symlink()


class Unlocks(Lines):
    """A display that ends a lock once it has something to say."""

    def __init__(self, plan: Plan, unlock: Callable[[], object]) -> None:
        super().__init__(plan)
        self.remarks: list[str] = []
        self._unlock = unlock

    def remark(self, text: str) -> None:
        self.remarks.append(text)
        self._unlock()


@pytest.mark.parametrize("held", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "BEGIN; SELECT * FROM specs"])
def test_a_run_waits_until_another_program_has_unlocked_the_records(
    tmp_path: Path, make_run: Callable[..., Run], tiny: Spec, monkeypatch: pytest.MonkeyPatch, held: str
):
    monkeypatch.setattr("cdgrad.study.records.store._ATTEMPT", 10)
    path = tmp_path / FILE
    with Store(tmp_path, write=True) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        digest = store.use_spec("tiny", "text")
        statements = [other.execute(statement) for statement in held.split("; ")]
        display = Unlocks(Plan(tiny, [], ""), lambda: (statements[-1].close(), other.execute("COMMIT")))
        add_when_unlocked(store, make_run("sgd", 0, 3.0), digest, display)
        assert [run.error for run in store.runs()] == [3.0]
    assert display.remarks == [
        f"waiting with sgd, seed 0: {path} is locked by another program (database is locked); close it there"
    ]
