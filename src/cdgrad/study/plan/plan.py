"""Which runs a study has, which of them remain, and which values its trials choose.

Everything is derived from the specification and the records; nothing here trains or writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any

from cdgrad.study import StudyError
from cdgrad.study.plan.complete import complete_differences, complete_seeds
from cdgrad.study.plan.job import Job
from cdgrad.study.plan.search import Choice, best_trial, ranked_error
from cdgrad.study.records.run import Key, Run
from cdgrad.study.shown import published_values
from cdgrad.study.spec import Setting, Spec, as_json, first_difference
from cdgrad.study.spec.space import Values

_AHEAD = 2  # seeds that may start before the decision about the seeds before them, so that no worker waits


class Plan:
    """The runs of `spec`, given those that are recorded.

    Args:
        spec: the study.
        runs: its records, in any order; failed runs remain, those of other arms are ignored.
        place: the output directory, for messages.
        enough: whether a cell's differences, those of each arm other than the baseline, need no more seeds;
            asked where the study has ``seeds = { until, most }``. None: all seeds run.

    Attributes:
        settings: every setting that a run can have, each arm's in each cell and with each trial's values.

    Raises:
        StudyError: a recorded run was executed under another specification than `spec`, or the values of a
            trial are not possible together.
    """

    def __init__(
        self,
        spec: Spec,
        runs: Iterable[Run],
        place: str,
        enough: Callable[[Spec, Sequence[Sequence[float]]], bool] | None = None,
    ) -> None:
        self.spec = spec
        self.settings = list(self._settings())
        self._enough = enough if spec.until else None
        self.place = place
        self._done = {run.key: run for run in runs if run.status != "failed" and self._is_part(run)}
        self._taken = set[Key]()
        self._shorter: dict[Key, Run] = {}  # final runs with what a search of fewer trials chose
        for run in list(self._done.values()):
            if run.trial is None:
                self._check_final(run)
            else:
                self._check_trial(run)
        self._keep_or_repeat()

    @cached_property
    def keys(self) -> list[Key]:
        """Every run of the study, cell by cell, trials first, then seed by seed: pairs complete early."""
        spec, keys = self.spec, list[Key]()
        own = [arm for arm in spec.arms if self._searched(arm) == arm]
        for cell in spec.cells:
            if spec.tuning is not None:
                trials = product(range(spec.tuning.trials), spec.tuning.seeds, own)
                keys += [(cell, arm, trial, seed) for trial, seed, arm in trials]
            keys += [(cell, arm, None, seed) for seed, arm in product(spec.seeds, spec.arms)]
        return keys

    @property
    def total(self) -> int:
        """How many runs the study has: all of `keys`, without seeds that a cell no longer needs."""
        ended = {cell for cell in self.spec.cells if self._ended(cell)}
        known = self._done.keys() | self._taken
        return sum(key in known or key[0] not in ended for key in self.keys)

    def _ended(self, cell: str) -> bool:
        """Whether a cell needs no further seeds."""
        if self._enough is None:
            return False
        return self._enough(self.spec, complete_differences(self.spec, cell, self._done))

    def _open_seeds(self, cell: str) -> set[int]:
        """The seeds whose runs may start: all, or those that the next looks at the cell need."""
        if self._enough is None:
            return {*self.spec.seeds}
        if self._ended(cell):
            return set()
        return {*self.spec.seeds[: complete_seeds(self.spec, cell, self._done) + _AHEAD]}

    @property
    def done(self) -> int:
        """How many of `keys` are recorded."""
        return sum(key in self._done for key in self.keys)

    def is_done(self, key: Key) -> bool:
        """Whether a run is recorded."""
        return key in self._done

    def take(self) -> Job | None:
        """The first of `keys` that can be run now and was not taken yet; None where there is none.

        The final runs of an arm in a cell can be run once all its trials are done, so None may be followed
        by a job after `add`.
        """
        ready = {cell: self._open_seeds(cell) for cell in self.spec.cells}
        for key in self.keys:
            cell, arm, trial, seed = key
            if key in self._done or key in self._taken or (trial is None and seed not in ready[cell]):
                continue
            replicate = self.spec.replicate(seed)
            values = self._values(cell, arm, trial, replicate)
            if values is None:
                continue
            self._taken.add(key)
            setting = self.spec.setting(cell, arm, values, trial=trial is not None)
            return Job(cell, arm, trial, seed, setting, dict(values), self.spec.folder, replicate)
        return None

    def add(self, run: Run) -> None:
        """A run that was taken has ended."""
        if run.status != "failed":
            self._done[run.key] = run
            self._keep_or_repeat()

    def choice(self, cell: str, arm: str, replicate: int = 0) -> Choice | None:
        """What a search of `arm` in `cell` resulted in; None where there is none, or some trials remain."""
        tuning = self.spec.tuning
        if tuning is None or self._searched(arm) != arm:
            return None
        seeds = tuning.seeds_of(replicate)
        keys = {t: [(cell, arm, t, seed) for seed in seeds] for t in range(tuning.trials)}
        if any(key not in self._done for of_trial in keys.values() for key in of_trial):
            return None
        errors = {t: [ranked_error(self._done[key]) for key in of_trial] for t, of_trial in keys.items()}
        trial = best_trial(errors, self.spec.measure)
        return Choice(trial, self._points[arm, replicate][trial], errors)

    @cached_property
    def _points(self) -> dict[tuple[str, int], list[dict[str, Any]]]:
        tuning = self.spec.tuning
        if tuning is None:
            return {}
        own = [arm for arm in self.spec.arms if self._searched(arm) == arm]
        return {(arm, r): tuning.points(arm, r) for arm, r in product(own, range(tuning.replicates))}

    def _settings(self) -> Iterator[Setting]:
        for cell, arm in product(self.spec.cells, self.spec.arms):
            searched = self._searched(arm)
            if searched is None:
                yield self.spec.setting(cell, arm)
                continue
            of_search = [points for (name, _), points in self._points.items() if name == searched]
            for trial, values in (each for points in of_search for each in enumerate(points)):
                try:
                    yield self.spec.setting(cell, arm, values)
                except StudyError as error:
                    where, name = f" in cell {cell}" if cell else "", self.spec.name
                    raise StudyError(
                        f"{name}: the values of trial {trial} are not possible together for arm {arm}"
                        f"{where}: {str(error).removeprefix(f'{name}: ')}; change the search space, or "
                        "list the trials as tuning.points"
                    ) from None

    def _searched(self, arm: str) -> str | None:
        """The arm whose trials decide the setting of `arm`; None where no trials do."""
        if self.spec.tuning is None:
            return None
        return {"own": arm, "baseline": self.spec.baseline, "none": None}[self.spec.arms[arm].tuning]

    def _values(self, cell: str, arm: str, trial: int | None, replicate: int) -> Values | None:
        """What a run uses; None where that is not known yet."""
        if trial is not None:
            return self._points[arm, replicate][trial]
        searched = self._searched(arm)
        if searched is None:
            return {}
        choice = self.choice(cell, searched, replicate)
        return None if choice is None else choice.values

    def _is_part(self, run: Run) -> bool:
        """Whether a recorded run belongs to the study, or would under other numbers of trials and seeds."""
        if run.cell not in self.spec.cells or run.arm not in self.spec.arms:
            return False
        return run.trial is None or self._searched(run.arm) == run.arm

    def _check_trial(self, run: Run) -> None:
        tuning = self.spec.tuning
        assert tuning is not None
        assert run.trial is not None
        if run.trial >= tuning.trials:
            raise self._mixed(run, f"tuning.trials was {run.trial + 1} or more and is {tuning.trials}")
        if run.seed not in tuning.seeds:
            raise self._mixed(run, f"tuning.seeds had {run.seed} and is {list(tuning.seeds)}")
        self._check_replicate(run)
        self._check_setting(run, self._points[run.arm, run.replicate][run.trial])

    def _check_replicate(self, run: Run) -> None:
        """Whether a run belongs to the search that its seed does; former seeds belong to any that exists."""
        known = {*self.spec.seeds, *(self.spec.tuning.seeds if self.spec.tuning else ())}
        expected = self.spec.replicate(run.seed) if run.seed in known else run.replicate
        if run.replicate != expected or run.replicate >= self.spec.replicates:
            raise self._mixed(run, f"tuning.replicates or the order of seeds; it is {self.spec.replicates}")

    def _check_final(self, run: Run) -> None:
        self._check_replicate(run)
        values = self._values(run.cell, run.arm, None, run.replicate)
        if self._is_of_a_shorter_search(run):
            self._shorter[run.key] = self._done.pop(run.key)
            return
        if values is None:  # the values were chosen among other trials than those of the specification
            assert self.spec.tuning is not None
            searched = self._searched(run.arm)
            trials = {k[2] for k in self._done if k[:2] == (run.cell, searched) and k[2] is not None}
            if len(trials) < self.spec.tuning.trials:
                change = f"tuning.trials was {len(trials)} and is {self.spec.tuning.trials}"
            else:
                change = f"tuning.seeds was another list than {list(self.spec.tuning.seeds)}"
            raise self._mixed(run, change)
        self._check_setting(run, values)

    def _is_of_a_shorter_search(self, run: Run) -> bool:
        """Whether a final run has the values that the first trials chose, before ``tuning.trials`` grew."""
        tuning, searched = self.spec.tuning, self._searched(run.arm)
        if tuning is None or searched is None:
            return False
        errors: dict[int, list[float]] = {}
        for trial in range(tuning.trials):
            keys = [(run.cell, searched, trial, seed) for seed in tuning.seeds_of(run.replicate)]
            if any(key not in self._done for key in keys):
                return self._has_values_of_a_prefix(run, searched, errors)
            errors[trial] = [ranked_error(self._done[key]) for key in keys]
        errors.popitem()  # all trials are not fewer
        return self._has_values_of_a_prefix(run, searched, errors)

    def _has_values_of_a_prefix(self, run: Run, searched: str, errors: dict[int, list[float]]) -> bool:
        points = self._points[searched, run.replicate]
        chosen = {
            best_trial({t: errors[t] for t in range(count)}, self.spec.measure)
            for count in range(1, len(errors) + 1)
        }
        settings = [self.spec.setting(run.cell, run.arm, points[trial]) for trial in chosen]
        return run.fingerprint in {setting.fingerprint for setting in settings}

    def _keep_or_repeat(self) -> None:
        """Final runs of a shorter search: done where all trials choose the same values, else to repeat."""
        for key, run in list(self._shorter.items()):
            values = self._values(run.cell, run.arm, None, run.replicate)
            if values is None:
                continue
            del self._shorter[key]
            if run.fingerprint == self.spec.setting(run.cell, run.arm, values).fingerprint:
                self._done[key] = run

    def _check_setting(self, run: Run, values: Values) -> None:
        setting = self.spec.setting(run.cell, run.arm, values, trial=run.trial is not None)
        if run.fingerprint != setting.fingerprint:
            old, new = published_values(run.config), published_values(as_json(setting))
            change = first_difference(run.values, values) or first_difference(old, new)
            raise self._mixed(run, change or "an absolute path changed")

    def _mixed(self, run: Run, change: str) -> StudyError:
        what = f"{'runs' if run.trial is None else 'trials'} of arm {run.arm}"
        where = f" in cell {run.cell}" if run.cell else ""
        return StudyError(
            f"{self.place} holds {what}{where} under another specification ({change}), which are never "
            f"mixed; restore the specification, or choose another --out"
        )
