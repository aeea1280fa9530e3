"""Accuracy as the measure of the built-in loop: the same study, the other way round."""

import re

import pytest
from tiny_study import TINY, in_this_process

from cdgrad.study.report import compose
from cdgrad.study.run.driver import run_study
from cdgrad.study.spec import parse
from cdgrad.study.statistics.results import read

ACCURACY = '\n[metric]\nname = "accuracy"\ndirection = "max"\n'
TUNING = (
    '\n[tuning]\ntrials = 3\nseeds = [10]\nspace."optimizer.lr" = { low = 1e-5, high = 0.5, log = true }\n'
)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """The results of a tuned study in errors, and in accuracies."""
    folder, text = tmp_path_factory.mktemp("accuracy"), TINY.replace("seeds = 2", "seeds = 3")
    text = text.replace("epochs = 1", "epochs = 2\ntest_every_epoch = true") + TUNING
    for name, table in (("error", ""), ("accuracy", ACCURACY)):
        run_study(parse(text + table, name), folder / name, 1, in_this_process)
    return read(folder / "error"), read(folder / "accuracy")


def test_every_run_ends_with_100_minus_its_error_and_the_same_trials_are_chosen(studies):
    error, accuracy = studies
    assert accuracy.spec.measure.name == "accuracy"
    assert len(error.final_runs) == 6
    for of_error, of_accuracy in zip(error.runs, accuracy.runs, strict=True):
        assert of_error.key == of_accuracy.key
        assert of_error.values == of_accuracy.values
        assert of_error.fingerprint != of_accuracy.fingerprint
        assert of_accuracy.error == 100 - of_error.error
        for before, after in zip(of_error.epochs, of_accuracy.epochs, strict=True):
            assert after["validation_accuracy"] == 100 - before["validation_error"]
            assert after["train_accuracy"] == 100 - before["train_error"]
            assert after["loss"] == before["loss"]
            assert not [key for key in after if "error" in key]
        if of_error.trial is None:
            best = of_error.measures["best_epoch_test_error"]
            assert of_accuracy.measures["best_epoch_test_accuracy"] == 100 - best


def test_differences_change_their_sign_and_verdicts_and_words_follow(studies, tmp_path, no_figures):
    error, accuracy = studies
    for place, (of_error, p) in error.comparisons.items():
        of_accuracy, same = accuracy.comparisons[place]
        assert of_accuracy.mean == pytest.approx(-of_error.mean)
        assert of_accuracy.win_rate == of_error.win_rate
        assert same == pytest.approx(p)
    compose.write(accuracy, tmp_path)
    page = re.sub(
        r"data:image[^\"]*|<style>.*?</style>",
        "",
        (tmp_path / "report.html").read_text(),
        flags=re.DOTALL,
    )
    assert "Accuracy on the test images, in percent" in page
    assert "positive is better" in page
    assert not re.findall(r"\berrors?\b", page)
    assert (tmp_path / "runs.csv").read_text().startswith("arm,seed,accuracy,")
