"""`cdgrad init`: its studies run as they are written, and no file of the user's is touched."""

from pathlib import Path

import pytest

from cdgrad import cli
from cdgrad.commands.init import TEMPLATES
from cdgrad.study import spec


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_a_valid_study_of_the_given_name(here, template):
    assert cli.main(["init", "mine", "--template", template]) == 0
    study = spec.load("mine.toml")
    assert study.title.startswith("mine: ")
    assert len(study.seeds) == 10
    text = Path("mine.toml").read_text()
    assert "NAME" not in text + Path("mine.py").read_text()
    assert "hub:mine" not in text


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_runs_as_it_stands(here, template, no_workers, no_figures):
    assert cli.main(["init", "mine", "--template", template]) == 0
    text = Path("mine.toml").read_text()
    small = text.replace("seeds = 10 ", "seeds = 2 ").replace("trials = 5", "trials = 1")
    small = small.replace("[1000, 1001]", "[1000]").replace("epochs = 10", "epochs = 1")
    Path("mine.toml").write_text(small)
    assert cli.main(["study", "mine.toml"]) == 0
    assert (here / "runs" / "mine" / "report.html").exists()


@pytest.mark.parametrize("taken", ["mine.toml", "mine.py"])
def test_an_existing_file_is_left_alone_and_nothing_else_is_written(here, taken, capsys):
    Path(taken).write_text("keep me")
    assert cli.main(["init", "mine"]) == 1
    assert capsys.readouterr().err == (
        f"cdgrad: {taken} exists already; choose another NAME, or move it away\n"
    )
    assert {p.name: p.read_text() for p in here.iterdir()} == {taken: "keep me"}


def test_after_an_error_no_file_is_left(here, monkeypatch, capsys):
    opened = Path.open

    def full(path, *arguments, **options):
        if path.name == "mine.py":
            raise OSError(28, "No space left on device")
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        assert cli.main(["init", "mine"]) == 1
    assert "cannot write mine.py: No space left on device" in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "name", ["../x", "my study", "class", "random", "cdgrad", "numpy", "__main__", "", "9lives", "na\u00efve"]
)
def test_a_name_that_cannot_be_a_module_is_refused(here, name, capsys):
    assert cli.main(["init", name]) == 2
    assert "NAME" in capsys.readouterr().err
    assert not list(here.iterdir())
