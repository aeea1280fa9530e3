"""The user's own files in a study's folder survive, and a report that cannot be written is printed first."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from cdgrad import cli
from cdgrad.study import StudyError, files
from cdgrad.study.files import MANIFEST
from cdgrad.study.report import compose
from cdgrad.study.report.document import Document
from cdgrad.study.statistics import Results


@pytest.fixture
def study(tiny_text, tmp_path, monkeypatch, no_workers, no_figures):
    """Runs ``cdgrad study`` in a project of the user's, with the project as --out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(tiny_text)
    return lambda: cli.main(["study", "tiny.toml", "--out", "."])


def test_folders_and_files_beside_a_study_survive_it(study, tmp_path):
    kept = {
        "checkpoints/net.pt": "weights",
        "driver.lock": "",
        "study.sqlite.new": "x",
        "plot.png": "mine",
    }
    (tmp_path / "checkpoints").mkdir()
    for name, text in kept.items():
        (tmp_path / name).write_text(text)
    assert study() == 0
    assert study() == 0
    assert {name: (tmp_path / name).read_text() for name in kept} == kept
    assert not (tmp_path / ".cdgrad-checkpoints").exists()


@pytest.mark.parametrize("name", ["report.md", "report.html", "runs.csv", "trials.csv"])
def test_a_folder_with_a_file_of_a_reports_name_is_refused_before_any_run(study, tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    assert study() == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{name} exists already and was not written by a study; choose another --out" in err
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "study.sqlite").exists()


def test_a_report_that_the_user_changed_is_left_and_the_tables_are_printed(study, finished, tmp_path, capsys):
    finished(tmp_path)
    assert study() == 0
    assert study() == 0, "a report of its own is replaced"
    (tmp_path / "report.md").write_text("with my notes")
    capsys.readouterr()
    assert cli.main(["report", "."]) == 1
    out, err = capsys.readouterr()
    assert "Paired difference to sgd" in out
    assert "report.md is not from cdgrad, or was changed since; move it away" in err
    assert err.count("\n") == 1
    assert (tmp_path / "report.md").read_text() == "with my notes"
    (tmp_path / "report.md").unlink()
    assert cli.main(["report", "."]) == 0


def test_the_report_of_an_older_study_is_replaced(study, finished, tmp_path):
    finished(tmp_path)
    assert study() == 0
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "report.md").write_text("from an older version")
    assert cli.main(["report", "."]) == 0
    assert (tmp_path / "report.md").read_text() != "from an older version"
    assert cli.main(["report", "."]) == 0


def test_reports_that_are_written_at_once_take_turns(tiny, make_run, tmp_path, monkeypatch):
    results = Results.of(tiny, [make_run("sgd", 0, 3.0)])

    def write(title):
        for _ in range(6):
            compose.write(results, tmp_path, Document(title, "", [], [], [], [], ""))

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, ["a" * 100_000, "b" * 100_000]))
    write("later")  # no report is taken for a file of the user's
    monkeypatch.setattr(compose, "_WAIT", 0)
    held = closing(files.lock(tmp_path / files.REPORT_LOCK))
    with held, pytest.raises(StudyError, match="another one is being written in"):
        write("")


def test_a_report_from_a_place_that_may_only_be_read(study, finished, tmp_path):
    finished(tmp_path)
    assert study() == 0
    (tmp_path / "report.md").unlink()
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
    command = ["unshare", "-m", "bash", "-c", script, "-", str(tmp_path)]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a folder")
    report = [sys.executable, "-m", "cdgrad", "report", str(tmp_path)]
    done = subprocess.run([*command, *report], capture_output=True, text=True, check=False)
    assert "Paired difference to sgd" in done.stdout
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "the report cannot be written in" in done.stderr


def test_a_terminal_that_lacks_characters_shows_the_tables(study, tiny_text, finished, tmp_path, monkeypatch):
    finished(tmp_path)
    (tmp_path / "tiny.toml").write_text(tiny_text.replace("Tiny", "Effekt von \u03bb"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert study() == 0
    sys.stdout.flush()
    assert b"Effekt von ?" in sys.stdout.buffer.getvalue()
