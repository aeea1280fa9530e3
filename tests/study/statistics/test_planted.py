"""The tool's test of itself: no, a small and a medium difference are planted in the errors of whole studies.

The scenarios are those of W. Du, "When +1% is not enough", arXiv 2511.19794, whose statistics (BCa bootstrap
and sign-flip test over paired seeds) are among those of the report.
"""

import math

import numpy as np
import pytest

from cdgrad.study.report.verdicts import verdicts
from cdgrad.study.spec import parse
from cdgrad.study.statistics import Results, paired

SEEDS, STUDIES, NOISE = 12, 100, 0.4


@pytest.mark.parametrize(("planted", "power"), [(0.0, 0.05), (0.1, 0.12), (0.35, 0.79)])
def test_a_planted_difference_is_shown_as_often_as_the_power_says(
    tiny_text, make_run, planted, power, monkeypatch
):
    """The seeds' own variation is shared by the arms, as where the seed draws the split."""
    monkeypatch.setattr(
        paired, "bca_interval", lambda differences: paired.Interval(math.nan, math.nan)
    )  # for time
    spec = parse(tiny_text.replace("seeds = 2", f"seeds = {SEEDS}"), "tiny")
    rng = np.random.default_rng(0)
    said = []
    for _ in range(STUDIES):
        seeds = 5 + rng.normal(size=SEEDS)
        arm = seeds - planted + NOISE * rng.normal(size=SEEDS)
        runs = [make_run("sgd", seed, float(error)) for seed, error in enumerate(seeds)]
        runs += [make_run("directed", seed, float(error)) for seed, error in enumerate(arm)]
        (sentence,) = verdicts(Results.of(spec, runs), "")
        said.append(sentence)
    fewer = np.mean(["is better than sgd" in sentence for sentence in said])
    more = np.mean(["is worse than sgd" in sentence for sentence in said])
    expected = paired.paired_power(SEEDS, planted, NOISE)
    assert expected == pytest.approx(power, abs=0.02)
    assert fewer + more == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / STUDIES))
    nothing = np.mean(["no difference is shown" in sentence for sentence in said])
    assert fewer + more + nothing == pytest.approx(1)
    if planted:
        assert fewer > 5 * more
