import errno
import math
import os

import pytest
from pyarrow import parquet

from cdgrad.study import StudyError, files
from cdgrad.study.records import Store, csv_text
from cdgrad.study.records.parquet import from_parquet, to_parquet
from cdgrad.study.records.run import COLUMNS, OPTIONAL
from cdgrad.study.spec import Measure


@pytest.fixture
def runs(make_run):
    return [
        make_run("sgd", 1, 0.1 + 0.2, cell="a", values={"lam": 1e-3, "direction": "input", "n": 3}),
        make_run(
            "sgd",
            0,
            5e-324,
            cell="a",
            evaluated="validation",
            epochs=[{"loss": 0.1}, {"loss": 1 / 3, "extra": 2.0}],
            trial=7,
        ),
        make_run(
            "sgd",
            0,
            100.0,
            status="diverged",
            epochs=[{"loss": math.nan}],
            measures={"ece": 0.25, "nll": math.nan},
        ),
        make_run("directed", 2**40, None, status="failed", message="no µ\n", epochs=[]),
        make_run("directed", 0, 1.0, epochs=[{}], config={"task": {"data": "ä", "shape": [1, 8]}}),
    ]


def test_the_round_trip_equals_the_store(runs, tmp_path):
    with Store(tmp_path, write=True) as store:
        digest = store.use_spec("tiny", "text")
        for run in runs:
            store.add(run, digest)
        kept = store.runs()
    to_parquet(kept, tmp_path / "runs.parquet")
    back = from_parquet(tmp_path / "runs.parquet")
    assert list(map(repr, map(_sorted, back))) == list(map(repr, map(_sorted, kept)))


def _sorted(run):
    """All fields, those that comparison leaves out, too, and nan in one form."""
    return {
        **vars(run),
        "epochs": [sorted(epoch.items()) for epoch in run.epochs],
        "measures": sorted(run.measures.items()),
    }


def test_the_same_runs_give_the_same_bytes_in_any_order(runs, tmp_path):
    to_parquet(runs, tmp_path / "one")
    to_parquet(runs[::-1], tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_other_tools_find_plain_columns(runs, tmp_path):
    import pyarrow.parquet as pq

    to_parquet(runs, tmp_path / "runs.parquet")
    table = pq.read_table(tmp_path / "runs.parquet")
    assert table.num_rows == 5
    assert table.column("curve.loss").to_pylist()[-1] == [0.1, 1 / 3]
    assert table.column("curve.extra").to_pylist()[-1] == [None, 2.0]
    assert table.column("error").to_pylist() == [1.0, None, 100.0, 0.1 + 0.2, 5e-324]


def test_a_curve_named_after_a_file_whose_name_is_no_text_is_written(make_run, tmp_path):
    run = make_run("sgd", 0, 1.0, epochs=[{os.fsdecode(b"loss of caf\xe9"): 2.0}])
    to_parquet([run], tmp_path / "runs.parquet")
    (read,) = from_parquet(tmp_path / "runs.parquet")
    assert read.epochs == [{"loss of caf\\udce9": 2.0}]


def test_no_runs_are_a_file_too(tmp_path):
    to_parquet([], tmp_path / "runs.parquet")
    assert from_parquet(tmp_path / "runs.parquet") == []


def test_what_cannot_be_written_or_read_is_said_in_a_line(runs, tmp_path):
    with pytest.raises(StudyError, match=r"cannot write .*No such file or directory"):
        to_parquet(runs, tmp_path / "none" / "runs.parquet")
    (tmp_path / "text").write_text("not Parquet")
    with pytest.raises(StudyError, match="cannot be read as the runs of a study"):
        from_parquet(tmp_path / "text")
    with pytest.raises(StudyError, match="cannot be read as the runs of a study"):
        from_parquet(tmp_path / "none")


def test_a_full_disk_leaves_the_earlier_file_whole(runs, tmp_path, monkeypatch):
    file = tmp_path / "runs.parquet"
    to_parquet(runs, file)
    before = file.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StudyError, match=r"cannot write .*No space left"):
        to_parquet(runs[:2], file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_no_measure_has_the_name_of_a_column_that_every_run_fills():
    for column in (column for column in COLUMNS if column.name not in ("error", *OPTIONAL)):
        assert Measure(column.name, "min").refusal.startswith("name must be")


def test_a_measure_may_have_the_name_of_a_column_of_costs(make_run, tmp_path):
    import pyarrow.parquet as pq

    runs = [make_run("sgd", seed, 12.5 + seed, memory=2**20, parameters=100) for seed in (0, 1)]
    to_parquet(runs, tmp_path / "runs.parquet", "memory")
    assert pq.read_table(tmp_path / "runs.parquet").column("memory").to_pylist() == [12.5, 13.5]
    header, *rows = (line.split(",") for line in csv_text(runs, "memory").splitlines())
    assert header.count("memory") == 1
    assert [row[header.index("memory")] for row in rows] == ["12.5", "13.5"]
    assert "error" not in header


@pytest.mark.parametrize(("column", "value"), [("status", "okay"), ("seed", "zero")])
def test_a_table_of_other_things_than_runs_is_refused(tmp_path, make_run, column, value):
    path = tmp_path / "runs.parquet"
    to_parquet([make_run("sgd", 0, 2.5)], path)
    table = parquet.read_table(path)
    place = table.column_names.index(column)
    parquet.write_table(table.set_column(place, column, [[value]]), path)
    with pytest.raises(StudyError, match=rf"not a run: .*{column} '{value}'"):
        from_parquet(path)
