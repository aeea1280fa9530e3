import csv
import dataclasses
import inspect
import io
import math
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime

import pytest
from pyarrow import parquet

from cdgrad.study import StudyError
from cdgrad.study.plan.job import Job
from cdgrad.study.records import FILE, Run, Store, csv_text, from_parquet, order, schema, to_parquet
from cdgrad.study.records import parquet as parquet_file
from cdgrad.study.records.schema import VERSION
from cdgrad.study.shown import published_values
from cdgrad.study.spec import as_json, parse


def test_a_reader_sees_every_run_as_soon_as_it_is_added(tmp_path, make_run):
    runs = [
        make_run("sgd", 0, 2.5),
        make_run("sgd", 1, None, status="failed", message="no"),
        make_run("directed", 1, 0.1 + 0.2),
    ]
    with Store(tmp_path, write=True) as store:
        digest = store.use_spec("tiny", "text")
        for run in runs:
            store.add(run, digest)
        with Store(tmp_path, write=False) as reader:
            assert reader.runs() == sorted(runs, key=lambda row: (row.arm, row.seed))
            assert reader.spec() == ("tiny", "text")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows moves no file that is open")
def test_a_folder_that_is_moved_during_a_study_is_said_to_be(tmp_path, make_run):
    with Store(tmp_path / "a", write=True) as store:
        digest = store.use_spec("tiny", "text")
        store.add(make_run("sgd", 0, 2.5), digest)
        (tmp_path / "a").rename(tmp_path / "b")
        with pytest.raises(
            StudyError, match=r"study.sqlite was moved or deleted while it was in use, and what"
        ):
            store.add(make_run("sgd", 1, 2.5), digest)
    with Store(tmp_path / "b", write=False) as reader:
        assert [run.seed for run in reader.runs()] == [0]


def test_a_curve_that_is_not_finite_survives(tmp_path, make_run):
    run = make_run("sgd", 0, 100.0, status="diverged", epochs=[{"loss": math.nan, "train_error": 90.0}])
    with Store(tmp_path, write=True) as store:
        store.add(run, store.use_spec("tiny", "text"))
        store.add(make_run("sgd", 1, math.nan, status="diverged"), store.use_spec("tiny", "text"))
        (epoch,) = store.runs()[0].epochs
        assert store.runs()[1].error is None
    assert math.isnan(epoch["loss"])
    assert epoch["train_error"] == 90.0


def test_a_run_that_is_made_again_replaces_the_first(tmp_path, make_run):
    with Store(tmp_path, write=True) as store:
        digest = store.use_spec("tiny", "text")
        store.add(make_run("sgd", 0, None, status="failed", message="no memory"), digest)
        store.add(make_run("sgd", 0, 3.0), digest)
        assert [run.error for run in store.runs()] == [3.0]
        store.add(make_run("sgd", 0, 2.0, values={"lam": 1.0}), digest)  # with what further trials chose
        assert [(run.error, run.values) for run in store.runs()] == [(2.0, {"lam": 1.0})]


def test_a_failed_run_leaves_a_finished_one_its_message_alone(tmp_path, make_run):
    kept = [make_run("sgd", 0, 3.0), make_run("sgd", 1, 90.0, status="diverged")]
    kept.append(make_run("sgd", 0, 4.0, trial=0, evaluated="validation"))
    with Store(tmp_path, write=True) as store:
        digest = store.use_spec("tiny", "text")
        for run in kept:
            store.add(run, digest)
            store.add(dataclasses.replace(run, status="failed", error=None, message="no memory"), digest)
        with_message = [dataclasses.replace(run, message="no memory") for run in kept]
        assert sorted(store.runs(), key=order) == sorted(with_message, key=order)
    with Store(tmp_path, write=True) as store:
        store.add(kept[0], store.use_spec("tiny", "another"))
        assert kept[0] in store.runs()


def test_the_specification_used_last_is_the_present_one(tmp_path):
    with Store(tmp_path, write=True) as store:
        for text in ("one", "two", "one"):
            store.use_spec("tiny", text)
        assert store.spec() == ("tiny", "one")


def test_one_driver_at_a_time(tmp_path):
    with Store(tmp_path, write=True), pytest.raises(StudyError, match="another cdgrad study is running in"):
        Store(tmp_path, write=True)
    Store(tmp_path, write=True).close()


def test_a_folder_without_a_study(tmp_path):
    with pytest.raises(StudyError, match="holds no study"):
        Store(tmp_path, write=False)


def test_a_link_to_records_that_are_absent_is_never_replaced_by_an_empty_file(tmp_path):
    (tmp_path / FILE).symlink_to(tmp_path / "another-disk" / FILE)
    with pytest.raises(StudyError, match="cannot be used: unable to open database file"):
        Store(tmp_path, write=True)
    assert (tmp_path / FILE).is_symlink()


@pytest.mark.parametrize("evaluated", ["test", "validation"])
def test_the_store_takes_no_trial_that_evaluated_the_test_part(tmp_path, make_run, evaluated):
    with Store(tmp_path, write=True) as store:
        digest = store.use_spec("tiny", "text")
        run = make_run("sgd", 100, 3.0, trial=0, evaluated=evaluated)
        if evaluated == "test":
            with pytest.raises(StudyError, match="CHECK constraint failed: trial IS NULL OR evaluated"):
                store.add(run, digest)
            assert store.runs() == []
        else:
            store.add(run, digest)
            assert store.runs() == [run]


def test_cell_arm_trial_and_seed_are_a_run(tmp_path, make_run):
    runs = [
        make_run("sgd", seed, 1.0, cell=cell, trial=trial, evaluated="validation", values={"lam": 0.1 + 0.2})
        for cell in ("a", "b")
        for trial in (None, 0, 1)
        for seed in (0, 1)
    ]
    with Store(tmp_path, write=True) as store:
        digest = store.use_spec("tiny", "text")
        for run in [*runs, *runs]:
            store.add(run, digest)
        assert store.runs() == runs


# Schema 1, as the first version of cdgrad wrote it.
SCHEMA_1 = """
CREATE TABLE specs (hash TEXT PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL, last_used INTEGER NOT NULL)
STRICT;
CREATE TABLE runs (arm TEXT NOT NULL, seed INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'diverged', 'failed')), message TEXT NOT NULL, error REAL,
    epochs TEXT NOT NULL, config TEXT NOT NULL, fingerprint TEXT NOT NULL, environment TEXT NOT NULL,
    started TEXT NOT NULL, seconds REAL NOT NULL, spec TEXT NOT NULL REFERENCES specs (hash),
    PRIMARY KEY (arm, seed)) STRICT;
INSERT INTO specs VALUES ('h', 'tiny', 'text', 1);
INSERT INTO runs VALUES ('sgd', 0, 'ok', '', 2.5, '[{"loss": null}]', '{"evaluate": "test"}', 'f',
    '{"torch": "2.0"}', '2026-01-01', 1.5, 'h');
INSERT INTO runs VALUES ('sgd', 1, 'failed', 'no', NULL, '[]', '{"evaluate": "validation"}', 'f',
    '{"torch": "2.0"}', '2026-01-01', 1.5, 'h');
PRAGMA user_version = 1;
"""


def test_records_of_the_first_schema_are_read_and_then_kept_in_the_present_one(tmp_path):
    db = sqlite3.connect(tmp_path / FILE)
    db.executescript(SCHEMA_1)
    db.close()
    with Store(tmp_path, write=False) as store:
        before, spec = store.runs(), store.spec()
    assert [(run.key, run.status, run.error, run.evaluated) for run in before] == [
        (("", "sgd", None, 0), "ok", 2.5, "test"),
        (("", "sgd", None, 1), "failed", None, "validation"),
    ]
    assert math.isnan(before[0].epochs[0]["loss"])
    assert (before[0].environment, before[0].seconds, before[1].message) == ({"torch": "2.0"}, 1.5, "no")
    with Store(tmp_path, write=True) as store:
        assert repr(store.runs()) == repr(before)
        assert store.spec() == spec
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
        tables = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        assert set(tables) == {("specs",), ("runs",)}


def test_records_of_another_schema_are_refused(tmp_path):
    Store(tmp_path, write=True).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    with pytest.raises(StudyError, match=f"has schema version {VERSION + 1}"):
        Store(tmp_path, write=False)


def test_a_file_that_is_no_store_is_reported_and_closed(tmp_path, monkeypatch):
    connect, opened = schema.connect, []
    monkeypatch.setattr(schema, "connect", lambda *place: opened.append(connect(*place)) or opened[-1])
    (tmp_path / FILE).write_text("not a database, but long enough to have a header " * 10)
    with pytest.raises(StudyError, match="file is not a database; the file is damaged"):
        Store(tmp_path, write=False)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


def test_a_full_disk_is_reported_and_keeps_what_was_there(tmp_path, make_run, monkeypatch):
    connect = schema.connect

    def with_no_room_for_another_page(path, mode):
        connection = connect(path, mode)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    with Store(tmp_path, write=True) as store:
        digest = store.use_spec("tiny", "text")
        store.add(make_run("sgd", 0, 3.0), digest)
    monkeypatch.setattr(schema, "connect", with_no_room_for_another_page)
    full = pytest.raises(StudyError, match="disk is full; free some space and run the same")
    with Store(tmp_path, write=True) as store, full:
        store.add(make_run("sgd", 1, 3.0, message="m" * 100_000), digest)
    with Store(tmp_path, write=False) as store:
        assert [run.seed for run in store.runs()] == [0]


def test_the_columns_of_every_format_are_the_fields_of_a_run(tmp_path):
    names = [field.name for field in dataclasses.fields(Run)]
    with Store(tmp_path, write=True):
        pass
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        assert [row[1] for row in db.execute("PRAGMA table_info(runs)")] == [*names, "spec", "digest"]
    to_parquet([], tmp_path / "runs.parquet")
    assert set(parquet.read_schema(tmp_path / "runs.parquet").names) == set(names)
    plain = set(names) - {"values", "measures", "config", "environment"}
    assert set(csv_text([]).strip().split(",")) == plain


@pytest.mark.parametrize("measure", ["error", "perplexity"])
def test_what_an_epoch_measured_is_hidden_by_no_column_of_its_name(make_run, measure):
    names = [*inspect.signature(Run).parameters, "perplexity", "value.lr", "epoch.loss", "=loss"]
    last = {name: float(number) for number, name in enumerate(names)}
    epochs, error = [{"loss": 1.0}, last], 0.1 + 0.2
    run = make_run("sgd", 7, error, epochs=epochs, values={"lr": 0.5}, measures={"loss": 99.0})
    text = csv_text([run], measure)
    (row,) = csv.DictReader(io.StringIO(text))
    assert len(text.splitlines()[0].split(",")) == len(row)
    assert (row[measure], row["arm"], row["seed"], row["seconds"]) == (repr(error), "sgd", "7", "1.5")
    header = [*row]
    assert header.index("value.lr") < header.index("measure.loss") < header.index("epoch.seconds")
    assert (row["value.lr"], row["measure.loss"], row["epochs"]) == ("0.5", "99.0", "2")
    assert {f"{number}.0" for number in range(len(names))} <= {*row.values()}
    assert row["epoch.seconds"] == f"{last['seconds']}"
    assert (
        "epoch.perplexity" in row if measure == "perplexity" else row["perplexity"] == f"{last['perplexity']}"
    )


def test_a_record_of_an_earlier_version_has_its_cpu_under_the_present_name(tmp_path, make_run):
    run = make_run("sgd", 0, 3.0, environment={"processor": "a CPU", "torch": "2.0"})
    with Store(tmp_path, write=True) as store:
        store.add(run, store.use_spec("tiny", "text"))
        (kept,) = store.runs()
    to_parquet([run], tmp_path / "runs.parquet")
    (read,) = parquet_file.from_parquet(tmp_path / "runs.parquet")
    assert kept.environment == read.environment == {"cpu": "a CPU", "torch": "2.0"}


def test_a_record_holds_no_absolute_folder_and_keeps_its_fingerprint(tiny_text, tmp_path):
    (tmp_path / "images").mkdir()
    keys = f'data = "{tmp_path / "images"}"\ntrain_split = "train"'
    spec = parse(tiny_text.replace('data = "fake"', keys), "tiny")
    setting = spec.setting("", "sgd")
    run = Job("", "sgd", None, 0, setting).lost(datetime.now(UTC), {}, "lost")
    assert run.config["task"]["data"] == "images"
    assert run.fingerprint == setting.fingerprint != parse(tiny_text, "tiny").setting("", "sgd").fingerprint
    with Store(tmp_path, write=True) as store:
        store.add(run, store.use_spec("tiny", "text"))
    to_parquet([dataclasses.replace(run, config=as_json(setting))], tmp_path / "runs.parquet")
    (again,) = from_parquet(tmp_path / "runs.parquet")
    assert again == run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/cifar", "cifar"),
        ("/data", "data"),
        ("C:\\Users\\ann\\cifar", "cifar"),
        ("~/cifar", "cifar"),
        ("../cifar", "../cifar"),
        ("uoft-cs/cifar10", "uoft-cs/cifar10"),
        ("torch.optim:SGD", "torch.optim:SGD"),
        ("/", "/"),
    ],
)
def test_absolute_paths_are_published_as_their_last_part(text, expected):
    assert published_values({"a": [text, 1, None, 0.5]}) == {"a": [expected, 1, None, 0.5]}
