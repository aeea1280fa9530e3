"""The benchmark of a GPU, rehearsed, and how it keeps to its time."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("triton")
from cdgrad.bench.gpu import record as recording
from cdgrad.bench.gpu.setup import Setup
from cdgrad.bench.page import gpu_tables


@pytest.fixture
def measured(monkeypatch):
    """Call it with sections and seconds: the record, and what was written after each item."""

    def run(sections, seconds):
        written = []
        monkeypatch.setattr(recording, "_sections", lambda setup: sections)
        monkeypatch.setattr(recording.threading, "Timer", lambda *_: recording.threading.Thread())
        monkeypatch.setattr(recording.threading.Thread, "cancel", lambda self: None, raising=False)
        setup = Setup(torch.device("cpu"))
        found = recording.record(setup, seconds, lambda found: written.append(json.dumps(found)))
        return found, [json.loads(text) for text in written]

    return run


def test_an_item_that_fails_costs_no_other_and_every_item_is_written(measured):
    def fails():
        raise ValueError("out of memory")

    items = {"a": lambda: {"ms": 1.0}, "b": fails, "c": lambda: {"ms": 2.0}}
    found, written = measured([("first", 1, lambda setup: items), ("second", 1, lambda setup: fails())], 60)
    first = found["sections"]["first"]
    assert first["rows"] == {"a": {"ms": 1.0}, "c": {"ms": 2.0}}
    assert "ValueError: out of memory" in first["errors"]["b"]
    assert "out of memory" in found["sections"]["second"]["errors"]["section"]
    assert written[0]["sections"]["first"]["rows"] == {"a": {"ms": 1.0}}
    assert "failed: first: b: ValueError" in gpu_tables(found)


def test_what_has_no_time_left_is_recorded_as_skipped(measured):
    items = {"a": lambda: time.sleep(0.2), "b": lambda: {}}
    found, _ = measured([("first", 1, lambda setup: items), ("second", 3, lambda setup: {"c": dict})], 0.4)
    assert found["sections"]["first"]["skipped"] == ["b"]
    assert found["sections"]["second"]["skipped"] == []


def test_the_rehearsal_runs_everything(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "cdgrad", "bench", "--device", "cuda", "--rehearse", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert list(found["sections"]) == [
        "compilation", "parity", "floor", "host", "graph", "training steps", "study loop", "jax",
    ]  # fmt: skip
    for name, section in found["sections"].items():
        assert not section["errors"]
        assert bool(section["rows"]) != bool(section["skipped"]), name  # JAX may be missing
        assert name == "jax" or section["rows"]
    assert all(row["error"] < 1e-6 for row in found["sections"]["parity"]["rows"].values())
    assert all(row["difference"] == 0 for row in found["sections"]["graph"]["rows"].values())
    assert set(found["sections"]["training steps"]["rows"]) == {"graph", "eager", "compiled"}
    assert done.stdout.strip() == gpu_tables(found).strip()
