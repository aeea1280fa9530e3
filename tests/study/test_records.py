import math
import os
import sqlite3

import pytest

from cdgrad.study import StudyError
from cdgrad.study.records import FILE, SCHEMA_VERSION, Store


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
            assert reader.runs() == sorted(runs, key=lambda r: (r.arm, r.seed))
            assert reader.spec() == ("tiny", "text")


def test_a_curve_that_is_not_finite_survives(tmp_path, make_run):
    run = make_run("sgd", 0, 100.0, status="diverged", epochs=[{"loss": math.nan, "train_error": 90.0}])
    with Store(tmp_path, write=True) as store:
        store.add(run, store.use_spec("tiny", "text"))
        (epoch,) = store.runs()[0].epochs
    assert math.isnan(epoch["loss"])
    assert epoch["train_error"] == 90.0


def test_a_run_that_is_made_again_replaces_the_first(tmp_path, make_run):
    with Store(tmp_path, write=True) as store:
        digest = store.use_spec("tiny", "text")
        store.add(make_run("sgd", 0, None, status="failed", message="no memory"), digest)
        store.add(make_run("sgd", 0, 3.0), digest)
        assert [run.error for run in store.runs()] == [3.0]


def test_the_specification_used_last_is_the_present_one(tmp_path):
    with Store(tmp_path, write=True) as store:
        for text in ("one", "two", "one"):
            store.use_spec("tiny", text)
        assert store.spec() == ("tiny", "one")


def test_one_driver_at_a_time(tmp_path):
    with Store(tmp_path, write=True), pytest.raises(StudyError, match="another cdgrad study is at work in"):
        Store(tmp_path, write=True)
    Store(tmp_path, write=True).close()


def test_a_folder_without_a_study(tmp_path):
    with pytest.raises(StudyError, match="holds no study"):
        Store(tmp_path, write=False)


def test_records_of_another_schema_are_refused(tmp_path):
    Store(tmp_path, write=True).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(StudyError, match=f"has schema version {SCHEMA_VERSION + 1}"):
        Store(tmp_path, write=False)


@pytest.mark.parametrize("kept", [0.9, 0.3])
def test_a_truncated_store_is_reported(tmp_path, make_run, kept):
    with Store(tmp_path, write=True) as store:
        digest = store.use_spec("tiny", "text")
        for seed in range(20):
            store.add(make_run("sgd", seed, 3.0, message="m" * 2000), digest)
    path = tmp_path / FILE
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(StudyError, match="the file is damaged: restore a copy"):
        Store(tmp_path, write=False).runs()


def test_a_file_that_is_no_store_is_reported(tmp_path):
    (tmp_path / FILE).write_text("not a database, but long enough to have a header " * 10)
    with pytest.raises(StudyError, match="file is not a database; the file is damaged"):
        Store(tmp_path, write=False)


def test_a_full_disk_is_reported_and_keeps_what_was_there(tmp_path, make_run):
    with Store(tmp_path, write=True) as store:
        digest = store.use_spec("tiny", "text")
        store.add(make_run("sgd", 0, 3.0), digest)
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StudyError, match="disk is full; make room and run the same command again"):
            store.add(make_run("sgd", 1, 3.0, message="m" * 100_000), digest)
    with Store(tmp_path, write=False) as store:
        assert [run.seed for run in store.runs()] == [0]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"cannot create the folder .*; choose another --out"):
        Store(tmp_path / "file" / "study", write=True)
