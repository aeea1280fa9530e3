"""How a callable that a specification names is found and called, beside what whole studies show of it."""

import sys

import pytest

from cdgrad.study import StudyError
from cdgrad.study.callables import (
    UserCodeError,
    call,
    call_network,
    load_callable,
    modules_beside,
    specification_folder,
    traceback_of,
    users_modules,
)


def failing(error):
    raise error


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "shown"), [(UserCodeError, "KeyError: 'x'"), (StudyError, "StudyError: wrong")]
)
def test_the_traceback_ends_with_the_users_error_and_else_with_ours(kind, shown):
    with pytest.raises(kind) as caught:
        raise kind("wrong") from KeyError("x")
    assert traceback_of(caught.value).splitlines()[-1].endswith(shown)


def test_folders_are_importable_inside_alone_and_come_last(here, monkeypatch):
    beside = str(here / "beside")
    before = list(sys.path)
    with modules_beside(beside), users_modules():
        assert sys.path == [*before, beside, str(here)]
        sys.path.remove(beside)  # as the user's module may
    assert sys.path == before
    assert specification_folder() == ""
    monkeypatch.setattr(sys, "path", [str(here), *before])
    with users_modules():
        pass
    assert sys.path == [str(here), *before]


def test_a_working_directory_that_was_removed_is_no_error(here, monkeypatch):
    (here / "gone").mkdir()
    monkeypatch.chdir(here / "gone")
    (here / "gone").rmdir()
    assert load_callable("math:sqrt")(4) == 2


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("math:pi", StudyError, "math:pi must be callable, got float"),
        (
            "math:absent",
            StudyError,
            r"math:absent cannot be imported: module 'math' has no attribute 'absent' .*\)$",
        ),
        ("nowhere:net", StudyError, "nowhere:net cannot be imported: No module named 'nowhere'$"),
        ("mine:net", UserCodeError, r"No module named 'nowhere'; install it, or correct the import$"),
        ("ends:net", UserCodeError, "ends:net cannot be imported: SystemExit"),
        (
            "xml.nets:net",
            StudyError,
            "resolves to the module xml.nets of Python's library, which precedes .*__init__",
        ),
    ],
)
def test_what_cannot_be_imported_is_told_from_what_fails_inside(name, kind, message, here):
    (here / "mine.py").write_text("import nowhere\n")
    (here / "ends.py").write_text("raise SystemExit(3)\n")
    (here / "xml").mkdir()
    (here / "xml" / "__init__.py").write_text("")
    with pytest.raises(StudyError, match=message) as caught:
        load_callable(name)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("name", "error", "kind", "message"),
    [
        ("mine:f", StudyError("as it is"), StudyError, "^as it is$"),
        ("mine:f", TypeError("no"), UserCodeError, r"mine:f refuses its arguments \(error\): no"),
        (
            "torch.optim:SGD",
            ValueError("no"),
            StudyError,
            r"torch.optim:SGD refuses its arguments \(error\): no",
        ),
        ("mine:f", SystemExit(3), UserCodeError, r"mine:f ended the process \(exit status 3\)"),
        ("mine:f", KeyError("x"), UserCodeError, "mine:f failed: KeyError"),
    ],
)
def test_the_users_errors_are_told_from_a_wrong_specification(name, error, kind, message):
    with pytest.raises(StudyError, match=message) as caught:
        call(failing, name, error=error)
    assert type(caught.value) is kind


def test_a_network_without_a_signature_gets_shape_and_classes():
    assert call_network(slice, "mine:net", (1, 8, 8), 10, {}) == slice((1, 8, 8), 10)
