"""The folders of the study tool: what old records and old imports rely on."""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from pathlib import Path

import pytest

from cdgrad.study import spec
from cdgrad.study.plan.search import Search
from cdgrad.study.records import Run, from_parquet

EVIDENCE = Path(__file__).parents[2] / "evidence"


@pytest.mark.parametrize(
    "name",
    [
        "spec.load",
        "spec.Spec",
        "entry.EntryArm",
        "results.read",
        "results.Results",
        "results.Search",
        "results.Compared",
        "records.Run",
        "parquet.to_parquet",
        "parquet.from_parquet",
        "stats.compare",
        "stats.verdict",
        "train.train",
        "run.run_study",
    ],
)
def test_documented_names_can_be_imported(name: str):
    module, _, attribute = name.partition(".")
    assert callable(getattr(import_module(f"cdgrad.study.{module}"), attribute))


def test_an_alias_has_no_other_names():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = import_module("cdgrad.study.stats").nothing


def test_fingerprints_of_committed_records_are_kept():
    run = next(
        recorded
        for recorded in from_parquet(EVIDENCE / "records" / "cifar10-jpeg.parquet")
        if recorded.trial is None
    )
    assert run.fingerprint == "243d8ffdba5615472fb59deec2f35542d54cb99ae7660f61c212976ba68225af"
    assert hashlib.sha256(json.dumps(run.config, sort_keys=True).encode()).hexdigest() == run.fingerprint
    study = spec.load(str(EVIDENCE / "studies" / "cifar10-jpeg.toml"))
    assert study.setting(run.cell, run.arm, run.values).fingerprint == run.fingerprint


def _trial(trial: int, seed: int, error: float | None) -> Run:
    return Run(
        "", "a", trial, seed, "ok", error, "validation", {}, [], {}, {}, "", {}, "", 0.0
    )  # fmt: skip


def test_a_missing_error_ranks_a_trial_last():
    errors = {0: [None, 0.0], 1: [60.0, 60.0]}
    runs = {
        trial: {seed: _trial(trial, seed, error) for seed, error in enumerate(of_trial)}
        for trial, of_trial in errors.items()
    }
    assert Search({0: {}, 1: {}}, runs, 4).chosen == 1
