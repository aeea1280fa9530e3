"""What may not be read or written: one line that names it and the next move, and nothing is lost."""

import hashlib
import os
import re
import shutil
from contextlib import contextmanager

import pytest
import unprivileged
from tiny_study import TINY

IMAGES = """
[task]
data = "set"
train = 4
validation = 2
"""
TABLES = TINY[TINY.index("[model]") :]
ENTRY = 'baseline = "a"\nseeds = 1\nentry = "mytrain:run"\narms.a = {}\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def command(folder):
    """Executes a command line as a user for whom permissions count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDGRAD_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        with unprivileged.user(folder) as execute:
            if execute is None:
                pytest.skip("permissions do not count for this user")
            yield execute


@pytest.fixture(scope="module")
def project(folder, command):
    """A finished study, a specification of images, training code, and a checkpoint."""
    image = pytest.importorskip("PIL.Image", reason="the extra data is not installed")
    (folder / "tiny.toml").write_text(TINY.replace("seeds = 2", "seeds = 1"))
    (folder / "more.toml").write_text(TINY)
    (folder / "images.toml").write_text(f'baseline = "sgd"\nseeds = 1\n{IMAGES}{TABLES}')
    (folder / "entry.toml").write_text(ENTRY)
    (folder / "failing.toml").write_text(ENTRY.replace("mytrain", "failing"))
    for name in ("mytrain", "failing"):
        (folder / f"{name}.py").write_text("def run(seed, arm):\n    return 1 / 0\n")
    for name in ("cat", "dog"):
        (folder / "set" / name).mkdir(parents=True)
        for value in range(5):
            image.new("L", (8, 8), 40 * value).save(folder / "set" / name / f"{value}.png")
    for spec, out in (("tiny.toml", "done"), ("failing.toml", "failed")):
        command("study", spec, "--out", out)
    assert (folder / "done" / "study.sqlite").is_file()
    (folder / "empty").mkdir()
    return folder


@contextmanager
def mode(path, bits):
    """Inside, a file or folder has other permissions."""
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "-lock" not in path.name and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize(
    ("path", "bits", "line", "message"),
    [
        ("tiny.toml", 0, "study tiny.toml", r"tiny.toml cannot be read: Permission denied; "),
        ("tiny.toml", 0, "plan tiny.toml", r"tiny.toml cannot be read: Permission denied; "),
        ("done", 0, "report done", r"'done/study.sqlite': Permission denied; "),
        (
            "done",
            0,
            "study more.toml --out done",
            r"cannot write in done: Permission denied; .*another --out",
        ),
        ("done", 0o500, "study more.toml --out done", r"cannot write in done: .*; .*another --out"),
        ("done/study.sqlite", 0, "report done", r"study.sqlite may not be read by this user; "),
        ("done/study.sqlite", 0, "export done --to new", r"study.sqlite may not be read by this user; "),
        (
            "done/study.sqlite",
            0,
            "record done --to new.parquet",
            r"study.sqlite may not be read by this user; ",
        ),
        (
            "done/study.sqlite",
            0,
            "study more.toml --out done",
            r"study.sqlite may not be read by this user; ",
        ),
        (
            "done/study.sqlite",
            0o400,
            "study more.toml --out done",
            r"study.sqlite may not be written by this user; ",
        ),
        ("done/.cdgrad-lock", 0, "study more.toml --out done", r"cannot write in done: Permission denied; "),
        ("done/.cdgrad-files.json", 0, "report done", r"done/.cdgrad-files.json: Permission denied"),
        ("done/report.md", 0, "report done", r"done/report.md: Permission denied"),
        ("failed/.cdgrad-logs", 0, "log failed a", r"cannot read failed/.cdgrad-logs/.*: Permission denied"),
        (
            "failed/.cdgrad-logs/a, seed 0.txt",
            0,
            "log failed a",
            r"cannot read .*seed 0.txt: Permission denied",
        ),
        (
            "empty",
            0o500,
            "study tiny.toml --out empty/new",
            r"cannot create the folder .*; choose another --out",
        ),
        (
            "empty",
            0o500,
            "export done --to empty",
            r"cannot write in empty: Permission denied; choose another --to",
        ),
        (
            "empty",
            0,
            "export done --to empty/new",
            r"cannot write in empty/new: Permission denied; choose another",
        ),
        (
            "empty",
            0o500,
            "record done --to empty/r.parquet",
            r"Permission denied; name a file in another folder",
        ),
        (
            "empty",
            0,
            "report done done --to empty/new",
            r"cannot write in empty/new: Permission denied; choose",
        ),
        (
            "empty",
            0o500,
            "train tiny.toml --weights empty/w.pt",
            r"w.pt cannot be written: Permission denied; name",
        ),
        (
            "empty",
            0o500,
            "train tiny.toml --checkpoint empty/c.pt",
            r"c.pt cannot be written: Permission denied; na",
        ),
        (
            "empty",
            0o500,
            "train tiny.toml --tensorboard empty/t",
            r"empty/t cannot be written: Permission denied",
        ),
        ("set", 0, "train images.toml", r"task.data: .*set cannot be read: Permission denied; "),
        (
            "set/cat",
            0,
            "train images.toml",
            r"task.data: .*cat cannot be read: Permission denied; ",
        ),
        (
            "set/cat",
            0o400,
            "train images.toml",
            r"task.data: .*cat.* cannot be read: Permission denied; ",
        ),
        (
            "set/cat/3.png",
            0,
            "train images.toml",
            r"task.data: .*3.png cannot be read: Permission denied; ",
        ),
        ("mytrain.py", 0, "train entry.toml", r"mytrain.*Permission denied"),
    ],
)
def test_what_may_not_be_used_is_named_in_a_line_and_left(project, command, path, bits, line, message):
    before = contents(project)
    with mode(project / path, bits):
        status, output, errors = command(*line.split())
    assert status in (1, 2), output
    assert len(errors) == 1, errors
    assert errors[0].startswith("cdgrad: ")
    assert re.search(message, errors[0]), errors[0]
    assert contents(project) == before


def test_a_cache_entry_that_may_not_be_read_is_named(project, command):
    assert command("plan", "images.toml", "--no-timing")[0] == 0
    (entry,) = (project / "cache").iterdir()
    for path, bits in ((entry, 0), (entry / "about.json", 0), (entry / "train-images.npy", 0)):
        with mode(path, bits):
            status, _, errors = command("train", "images.toml")
        assert (status, len(errors)) == (1, 1), errors
        assert re.search("cache entry .* may not be read by this user; ask its owner", errors[0]), errors


def test_a_checkpoint_that_may_not_be_read_is_named_and_kept(project, command):
    file = project / "mine.pt"
    file.write_bytes(b"weights")
    with mode(file, 0):
        status, _, errors = command("train", "tiny.toml", "--checkpoint", "mine.pt")
    assert (status, len(errors)) == (1, 1), errors
    assert "mine.pt cannot be read: Permission denied; " in errors[0]
    assert file.read_bytes() == b"weights"
    os.unlink(file)


def test_a_checkpoint_of_a_study_that_may_not_be_read_is_not_started_over(project, command):
    shutil.copytree(project / "done", project / "again")
    checkpoints = project / "again" / ".cdgrad-checkpoints"
    checkpoints.mkdir()  # as a run leaves it that was killed
    (checkpoints / "own.pt").write_bytes(b"weights")
    with mode(checkpoints, 0):
        status, _, errors = command("study", "more.toml", "--out", "again")
    assert (status, [line for line in errors if "Traceback" in line]) == (1, [])
    assert re.search(r"failed: .*\.pt cannot be read: Permission denied; change its permissions", errors[-1])
    assert (checkpoints / "own.pt").read_bytes() == b"weights"
    assert command("study", "more.toml", "--out", "again")[0] == 0
