"""A damaged record is one line or no difference at all; hostile specifications and files end in one line."""

import contextlib
import io
import random
import sqlite3
from contextlib import closing

import pytest
from old_store import as_schema

from cdgrad.study import StudyError
from cdgrad.study.records.csv_file import csv_text
from cdgrad.study.records.parquet import from_parquet, to_parquet
from cdgrad.study.records.store import FILE, Store
from cdgrad.study.spec import parse


def add(folder, runs, text="text"):
    with Store(folder, write=True) as store:
        digest = store.use_spec("tiny", text)
        for run in runs:
            store.add(run, digest)


def read(folder):
    with Store(folder, write=False) as store:
        return store.runs()


@pytest.mark.parametrize("column", ["error", "seed", "epochs", "fingerprint", "started"])
def test_a_changed_value_of_a_row_is_named(tmp_path, make_run, column):
    add(tmp_path, [make_run("sgd", 0, 3), make_run("directed", 1, 2.5)])
    assert len(read(tmp_path)) == 2
    with closing(sqlite3.connect(tmp_path / FILE)) as db, db:
        change = "'[]'" if column == "epochs" else 7 if column in ("error", "seed") else "'x'"
        db.execute(f"UPDATE runs SET {column} = {change} WHERE arm = 'directed'")
    with pytest.raises(StudyError, match=r"of arm directed, seed \d differs from its digest; the file is"):
        read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        "specs SET name = 'width' WHERE text = 'text'",
        "specs SET last_used = 9 WHERE text = 'planned'",
        "specs SET text = 'other' WHERE text = 'planned'",
        "runs SET spec = (SELECT hash FROM specs WHERE text = 'text')",
    ],
    ids=["title", "order", "earlier specification", "specification of a run"],
)
def test_a_study_is_never_reported_under_another_specification(tmp_path, make_run, change):
    add(tmp_path, [make_run("sgd", 0, 3.0)], text="planned")
    add(tmp_path, [make_run("sgd", 1, 2.0)])
    assert everything(tmp_path)[1:] == (("tiny", "text"), [("tiny", "planned")])
    with closing(sqlite3.connect(tmp_path / FILE)) as db, db:
        db.execute(f"UPDATE {change}")
    with pytest.raises(StudyError, match=r"differs from its digest; the file is damaged: restore a copy"):
        everything(tmp_path)


@pytest.mark.parametrize("version", [2, 5])
def test_an_earlier_store_names_its_specifications_and_then_guards_them(tmp_path, make_run, version):
    add(tmp_path, [make_run("sgd", 0, 3.0)], text="planned")
    add(tmp_path, [make_run("sgd", 1, 2.0)])
    expected = everything(tmp_path)
    as_schema(tmp_path / FILE, version)
    assert everything(tmp_path) == expected
    Store(tmp_path, write=True).close()
    assert everything(tmp_path) == expected
    with closing(sqlite3.connect(tmp_path / FILE)) as db, db:
        db.execute("UPDATE specs SET name = 'width'")
    with pytest.raises(StudyError, match="the specification differs from its digest"):
        everything(tmp_path)


def test_records_of_schema_2_are_read_and_brought_up_to_date(tmp_path, make_run):
    add(tmp_path, [make_run("sgd", 0, 3.0)])
    as_schema(tmp_path / FILE, 2)
    before = read(tmp_path)
    add(tmp_path, [make_run("sgd", 1, 2.0)])
    assert read(tmp_path)[:1] == before
    assert len(read(tmp_path)) == 2


def test_records_of_schema_3_keep_their_digests(tmp_path, make_run):
    add(tmp_path, [make_run("sgd", 0, 3.0), make_run("sgd", 1, 2.5)])
    as_schema(tmp_path / FILE, 3)
    before = read(tmp_path)
    assert [(run.parameters, run.images, run.memory) for run in before] == [(None, None, None)] * 2
    with Store(tmp_path, write=True) as store:
        assert store.runs() == before
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        assert all(digest for (digest,) in db.execute("SELECT digest FROM runs"))


def test_a_damaged_row_of_schema_3_is_named_and_not_brought_up_to_date(tmp_path, make_run):
    add(tmp_path, [make_run("sgd", 0, 3.0)])
    as_schema(tmp_path / FILE, 3)
    with closing(sqlite3.connect(tmp_path / FILE)) as db, db:
        db.execute("UPDATE runs SET error = 7")
    for write in (False, True):
        with (
            pytest.raises(StudyError, match="of arm sgd, seed 0 differs from its digest"),
            Store(tmp_path, write=write) as store,
        ):
            store.runs()
        with closing(sqlite3.connect(tmp_path / FILE)) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (3,)


def everything(folder):
    """All that a store holds of a study."""
    with Store(folder, write=False) as store:
        return store.runs(), store.spec(), store.earlier_specs()


def test_a_flipped_bit_never_changes_a_record_without_a_word(tmp_path, make_run):
    add(tmp_path, [make_run("sgd", 0, 3.0)], text="planned")
    add(tmp_path, [make_run("sgd", seed, 3.0 + seed) for seed in range(1, 8)])
    whole, path = everything(tmp_path), tmp_path / FILE
    assert whole[1:] == (("tiny", "text"), [("tiny", "planned")])
    content, chance = path.read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            read_again = everything(tmp_path)
        except StudyError:
            continue
        assert read_again == whole


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = 2", "seeds = [9223372036854775808]", "from 0 to 2"),
        ("seeds = 2", "seeds = 100000000", "at least 1 and at most 100000"),
        ("seeds = 2", "seeds = " + "9" * 5000, "not valid TOML"),
        ("seeds = 2", "seeds = 0x" + "f" * 5000, "at most 64 bits"),
        ("width = 2", "width = 1979-05-27", "put a date in quotes"),
        ("width = 2", "width = " + "[" * 30 + "]" * 30, "more than 20 levels"),
        ("width = 2", "width = " + "[" * 5000 + "]" * 5000, "not valid TOML"),
        ("lr = 0.1", "lr = " + "9" * 400, "at most 64 bits"),
        ("lr = 0.1", "lr = 0.1\nnesterov = [1, nan]", r"optimizer.nesterov.1 must be a number; got nan"),
        ('"fake"', '"a\\u0000b"', "task.data must be text without null characters"),
        ("width = 2", "width = 0", "model.width must be an integer from 1 to 10000; got 0"),
        ("width = 2", "width = 2.5", "model.width must be an integer from 1 to 10000; got 2.5"),
        ("width = 2", "width = 1000000000", "model.width must be an integer from 1"),
        ("width = 2", "width = true", "model.width must be an integer from 1"),
        ("width = 2", "width = 2\ndepth = -3", "model.depth must be an integer from 1"),
        ("epochs = 1", "epochs = 10000000000", "schedule.epochs must be"),
    ],
)
def test_a_value_that_no_setting_can_have_is_refused_in_a_line(tiny_text, old, new, message):
    with pytest.raises(StudyError, match=message) as caught:
        parse(tiny_text.replace(old, new, 1), "tiny")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_damaged_parquet_file_is_a_study_error(tmp_path, make_run):
    path = tmp_path / "runs.parquet"
    to_parquet([make_run("sgd", 0, 3.0)], path)
    content, chance = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(chance.randrange(1, 20)):
            damaged[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            from_parquet(path)
        except StudyError:
            refused += 1
    assert refused > 20  # the others have changed values, which Parquet does not notice


def test_a_flipped_bit_in_a_parquet_file_never_changes_a_result_without_a_word(tmp_path, make_run):
    path = tmp_path / "runs.parquet"
    to_parquet([make_run("sgd", seed, 3.0 + seed) for seed in range(5)], path)
    content, chance = path.read_bytes(), random.Random(0)
    whole = [(run.key, run.error, run.status, run.values) for run in from_parquet(path)]
    for _ in range(200):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(StudyError):
            assert [(run.key, run.error, run.status, run.values) for run in from_parquet(path)] == whole


def test_text_in_a_csv_file_steers_no_terminal(make_run):
    odd = "a\x1b[31m\u202eb\nc"
    run = make_run("sgd", 0, 3.0, values={odd: odd}, measures={odd: 1.0}, epochs=[{odd: 2.0}])
    (header, row) = csv_text([run]).splitlines()
    assert {"a [31m b c", "value.a [31m b c", "measure.a [31m b c"} < {*header.split(",")}
    assert row.split(",").count("a [31m b c") == 1


def test_what_is_published_names_no_folder_and_holds_no_formula(make_run):
    run = make_run(
        "sgd", 0, None, status="failed", message="=cmd() in /home/ada/x.py", epochs=[{"=1+1": -2.0}]
    )
    (header, row) = io.StringIO(csv_text([run])).readlines()
    assert "'=1+1" in header.split(",")
    assert "-2.0" in row.split(",")
    assert "'=cmd() in x.py" in row
    for sign in "+-@":
        assert f",'{sign}SUM(1)," in csv_text([make_run("sgd", 0, 1.0, values={"lr": f"{sign}SUM(1)"})])


def test_a_record_publishes_no_folder(tmp_path, make_run):
    file = tmp_path / "runs.parquet"
    to_parquet(
        [make_run("sgd", 0, None, status="failed", message="no /home/Ada Love/set/cat.png here")], file
    )
    assert from_parquet(file)[0].message == "no cat.png here"
