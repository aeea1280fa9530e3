"""What befalls a folder of records: a clear line, and every finished run still there."""

import resource
import signal
import sqlite3
import subprocess
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import pytest

from cdgrad import cli
from cdgrad.study import StudyError
from cdgrad.study.plan.plan import Plan
from cdgrad.study.records import FILE, Store, order
from cdgrad.study.run.driver import add_when_unlocked, run_study
from cdgrad.study.run.engine import RunDone
from cdgrad.study.run.progress import Lines
from cdgrad.study.spec import parse


@pytest.fixture
def spec(tiny_text):
    return parse(
        tiny_text.replace("seeds = 2", "seeds = 10") + "[tuning]\ntrials = 2\nseeds = [100]\n[tuning.space]\n"
        '"optimizer.lr" = { low = 0.01, high = 1.0, log = true }\n',
        "tiny",
    )


def engine(stop=1000, size=2000):
    """An engine that trains nothing and is interrupted after some runs; an epoch's record has a size."""

    def run_all(take, workers):
        for _ in range(stop):
            job = take()
            if job is None:
                return
            run = job.run(
                datetime.now(UTC),
                status="ok",
                error=job.seed + job.setting.optimizer.lr,
                epochs=[{f"measure {i}": i / 7 for i in range(size // 40)}],
                measures={},
                environment={},
                seconds=0.0,
            )
            yield RunDone(0, job, run)
        raise KeyboardInterrupt

    return run_all


def records(folder):
    with Store(folder, write=False) as store:
        return store.runs()


@pytest.fixture
def whole(spec):
    """The records of the study, if nothing happens to it."""
    plan, finished = Plan(spec, [], "here"), []
    for event in engine()(plan.take, 1):
        plan.add(event.run)
        finished.append(event.run)
    return sorted(finished, key=order)


def interrupted(spec, folder, stop):
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, folder, 1, engine(stop))


@contextmanager
def small_disk(folder, kilobytes):
    """A file system of its own at `folder`; the test is skipped where that is not allowed."""
    folder.mkdir()
    options = f"size={kilobytes}k,mode=755"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"needs to mount a small disk: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [4, 24, 36, 64])
def test_a_full_disk(spec, whole, tmp_path, kilobytes):
    folder = tmp_path / "disk"
    with small_disk(folder, kilobytes):
        with pytest.raises(StudyError, match="full; free some space and run the same") as caught:
            run_study(spec, folder, 1, engine())
        assert "\n" not in str(caught.value)
        before = records(folder) if (folder / FILE).exists() else []
        assert all(run in whole for run in before)
        assert (kilobytes < 64) or before
        subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
        executed = run_study(spec, folder, 1, engine())
        assert len(executed) == len(whole) - len(before)
        assert records(folder) == whole


def test_a_limit_on_the_size_of_files(spec, whole, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(StudyError, match="disk I/O error; free some space and run the same"):
            run_study(spec, tmp_path, 1, engine())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    kept = records(tmp_path)
    assert 0 < len(kept) < len(whole)
    run_study(spec, tmp_path, 1, engine())
    assert records(tmp_path) == whole


def test_a_folder_that_turns_read_only(spec, tmp_path, whole):
    folder = tmp_path / "disk"
    with small_disk(folder, 4096):
        interrupted(spec, folder, 7)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(StudyError, match=r"cannot write in .*; choose another --out") as caught:
            run_study(spec, folder, 1, engine())
        assert "\n" not in str(caught.value)
        with pytest.raises(StudyError, match=r"cannot create the folder .*Read-only file system; choose an"):
            run_study(spec, folder / "new", 1, engine())
        assert len(records(folder)) == 7
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        run_study(spec, folder, 1, engine())
        assert records(folder) == whole


def test_a_folder_below_a_file(spec, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"cannot create the folder .*; choose another --out"):
        run_study(spec, tmp_path / "file" / "study", 1, engine())


def test_a_truncated_store_is_refused_and_left_as_it_is(spec, whole, tmp_path):
    interrupted(spec, tmp_path, 12)
    path = tmp_path / FILE
    content = path.read_bytes()
    for kept in (0, 1, 50, 100, 1024, 4096, 0.3, 0.5, 0.9, 0.999):
        size = kept if isinstance(kept, int) else int(kept * len(content))
        path.write_bytes(content[:size])
        for attempt in (lambda: run_study(spec, tmp_path, 1, engine()), lambda: records(tmp_path)):
            with pytest.raises(StudyError, match="the file is damaged: restore a copy, or") as caught:
                attempt()
            assert "\n" not in str(caught.value)
        assert path.read_bytes() == content[:size]
    path.write_bytes(content)
    assert len(run_study(spec, tmp_path, 1, engine())) == len(whole) - 12
    assert records(tmp_path) == whole


def test_a_specification_that_is_changed_in_mid_study(spec, whole, tmp_path):
    interrupted(spec, tmp_path, 9)
    before = records(tmp_path)
    for old, new in (
        ("momentum = 0.9", "momentum = 0.5"),
        ("high = 1.0", "high = 3.0"),
        ("trials = 2", "trials = 1"),
    ):
        changed = parse(spec.text.replace(old, new), "tiny")
        with pytest.raises(
            StudyError, match=r"another specification \(.* was .* and is .*\), which are never mixed"
        ):
            run_study(changed, tmp_path, 1, engine())
        assert records(tmp_path) == before
    with Store(tmp_path, write=False) as store:
        assert store.spec() == ("tiny", spec.text)
    run_study(spec, tmp_path, 1, engine())
    assert records(tmp_path) == whole


def test_two_drivers_on_one_folder(spec, whole, tmp_path):
    def with_another(jobs, workers):
        for event in engine()(jobs, workers):
            with pytest.raises(StudyError, match=r"another cdgrad study is running in .*; wait for it, or"):
                run_study(spec, tmp_path, 1, engine())
            yield event

    run_study(spec, tmp_path, 1, with_another)
    assert records(tmp_path) == whole


class Unlocks(Lines):
    """A display that ends a lock once it has something to say."""

    def __init__(self, plan, unlock):
        super().__init__(plan)
        self.remarks = []
        self._unlock = unlock

    def remark(self, text):
        self.remarks.append(text)
        self._unlock()


@pytest.mark.parametrize("held", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "BEGIN; SELECT * FROM specs"])
def test_a_run_waits_until_another_program_has_unlocked_the_records(
    tmp_path, make_run, tiny, monkeypatch, held
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


def test_an_error_of_the_store_ends_the_command_in_a_line(spec, tmp_path, capsys):
    (tmp_path / "spec.toml").write_text(spec.text)
    (tmp_path / FILE).touch()
    assert cli.main(["study", str(tmp_path / "spec.toml"), "--out", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("cdgrad: the records in")
    assert message.count("\n") == 1
