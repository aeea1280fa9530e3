"""What a study says, from its records alone: sentences, tables and figures, and the files that hold them."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from cdgrad.study import StudyError, files
from cdgrad.study.records import FILE, csv_file
from cdgrad.study.report import across, further, html_page, run_tables, tables, text, times, tuning_tables
from cdgrad.study.report.document import Document, Figure, Section, Table
from cdgrad.study.report.environments import environments
from cdgrad.study.report.figures import curves, differences, levels, settings
from cdgrad.study.report.remarks import remarks
from cdgrad.study.report.verdicts import across_cells, verdicts
from cdgrad.study.report.words import words
from cdgrad.study.statistics.results import Results, read
from cdgrad.study.statistics.together import together as combined

_WAIT = 30.0  # seconds for another process to end its report of the same folder
__all__ = ["AS_SPECIFIED", "Asked", "Results", "document", "read", "together", "write"]


@dataclass(frozen=True)
class Asked:
    """What a report shows: the comparisons of the specification, unless others are asked for.

    Attributes:
        reference, all_pairs: as in `Results.compared_with`.
        target: as in `document`.
    """

    reference: str = ""
    all_pairs: bool = False
    target: float | None = None

    def compared(self, results: Results) -> Results:
        """`results` with the comparisons that are asked for.

        Raises:
            StudyError: they are not in the study.
        """
        return results.compared_with(self.reference, all_pairs=self.all_pairs)

    def report(self, results: Results) -> tuple[Results, Document]:
        """`compared`, and its document.

        Raises:
            StudyError: what is asked for is not in the study.
        """
        compared = self.compared(results)
        return compared, document(compared, self.target)


AS_SPECIFIED = Asked()


def document(results: Results, target: float | None = None) -> Document:
    """The study in sentences, tables and figures; with the time to reach `target`, where one is given.

    Raises:
        StudyError: no epoch measured what `target` is of.
    """
    return _document(results, target, _is_provisional(results))


def _document(results: Results, target: float | None, provisional: bool) -> Document:
    spec = results.spec
    several = len(spec.cells) > 1
    sections: list[Section] = []
    if several and results.comparisons:
        overview = (tables.summary(results), differences.overview(results))
        sections.append(Section("All cells", (), (*overview, *across.parts(results))))
    sections += [_cell(results, cell, several, target, provisional) for cell in spec.cells]
    if results.searches:
        sections.append(Section("Tuning", (), (tuning_tables.tuning(results),)))
    sections.append(_details(results))
    return Document(
        title=spec.title,
        summary=_progress(results),
        verdicts=_marked(
            across_cells(results) if several else verdicts(results, next(iter(spec.cells))), provisional
        ),
        remarks=remarks(results),
        sections=sections,
        environment=times.dates(results)
        + [f"{key}: {' and '.join(versions)}" for key, versions in environments(results).items()],
        spec=spec.text,
    )


def together(studies: Mapping[str, Results], target: float | None = None) -> tuple[Results, Document]:
    """Several studies, by name, as one with the cells of all, and its document; see `statistics.together`.

    Raises:
        StudyError: they cannot be compared in one.
    """
    results = combined(studies)
    said = [
        f"{name}: {sentence}"
        for name, study in studies.items()
        for sentence in (*_left_out_of_several(study, results), *remarks(study))
    ]
    summary = "; ".join(_progress(study) for study in studies.values())
    provisional = any(map(_is_provisional, studies.values()))
    return results, replace(_document(results, target, provisional), summary=summary, remarks=said)


def _left_out_of_several(study: Results, several: Results) -> Iterator[str]:
    """What of a study is not in the report of several."""
    spec, shared = study.spec, several.spec
    if others := [arm for arm in spec.arms if arm not in shared.arms]:
        yield f"Not in all of the studies, and left out here: arm {', '.join(others)}."
    if spec.margin != shared.margin:
        yield (
            f"Equivalence within its margin of {words(study).amount(spec.margin)} is not tested here, "
            "because another study states another one, or none."
        )


def write(results: Results, folder: Path, written: Document | None = None) -> list[Path]:
    """Write the files of a report; their paths, most useful first.

    report.html, report.md, runs.csv, with trials also trials.csv, and every figure as a PNG.

    Args:
        results: the study.
        folder: where to; it exists.
        written: the document of `results`, where there is one already.

    Raises:
        StudyError: a file cannot be written.
    """
    spec, doc = results.spec, written or document(results)
    content = {
        "report.html": html_page.html(doc).encode(),
        "report.md": text.markdown(doc).encode(),
        "runs.csv": csv_file.csv_text(results.final_runs, spec.measure.name).encode(),
    }
    if results.searches:
        content["trials.csv"] = csv_file.csv_text(results.trial_runs, spec.measure.name).encode()
    for figure in doc.figures:
        content[f"{figure.name}.png"] = figure.png()
    try:
        with closing(files.lock(folder / files.REPORT_LOCK, _WAIT)):
            _write(content, folder)
    except sqlite3.OperationalError as error:
        raise StudyError(
            f"the report was not written: another one is being written in {folder} ({error}); run cdgrad "
            "report again"
        ) from error
    except OSError as error:
        exists = error.filename and Path(error.filename).exists()
        place = f"{error.filename}: " if exists else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space" if full else "change the permissions"
        raise StudyError(
            f"the report cannot be written in {folder}: {place}{error.strerror or error}; {remedy}, or copy "
            "the folder"
        ) from error
    return [folder / name for name in content]


def _write(content: Mapping[str, bytes], folder: Path) -> None:
    """Replace the files of a report, of which one process at a time may write."""
    manifest = files.Manifest(folder, FILE)
    if foreign := manifest.foreign([*content]):
        raise StudyError(
            f"the report was not written: {folder / foreign} is not from cdgrad, or was changed since; "
            "move it away, and run cdgrad report again"
        )
    for name, data in content.items():
        manifest.write(name, data)


def _cell(results: Results, cell: str, several: bool, target: float | None, provisional: bool) -> Section:
    """What was measured in a cell; its verdicts, too, where there are several cells."""
    compared = results.in_cell(cell)
    parts: list[Table | Figure] = []
    if compared:
        parts += [tables.differences(results, cell), differences.paired_differences(results, cell)]
    parts.append(tables.errors(results, cell))
    curves_and_levels = (curves.difference_curves, curves.learning_curves, levels.levels)
    parts += [drawing for draw in curves_and_levels if (drawing := draw(results, cell))]
    parts += [] if target is None else [_time_to(results, cell, target)]
    if compared:
        parts += [tuning_tables.replicates(results, cell)] if results.spec.replicates > 1 else []
        parts += [t for t in (tables.certainty(results, cell), tables.power(results, cell)) if t.rows]
        besides = (further.further_table(results, cell), further.further_figure(results, cell))
        parts += [part for part in besides if part]
    others = (settings.lam_sweep, settings.tuning_scatter, curves.gradient_curves)
    parts += [drawing for draw in others if (drawing := draw(results, cell))]
    sentences = _marked(verdicts(results, cell), provisional) if several else ()
    return Section(cell, sentences, parts)


def _time_to(results: Results, cell: str, target: float) -> Table:
    table = times.time_to_target(results, cell, target)
    if table is None:
        spec, name = results.spec, results.spec.measure.key
        raise StudyError(
            f"{spec.name} has no curve of its {spec.measure.name}, so that no time to a target is known; "
            f"an entry records one with arm.report(epoch, validation_{name}=...)"
        )
    return table


def _details(results: Results) -> Section:
    """Every number that the tables are made of."""
    cells = results.spec.cells
    searches = results.searches.items()
    seeds = [run_tables.seeds(results, cell) for cell in cells]
    trials = [tuning_tables.trials(results, search, place.cell) for place, search in searches if search.runs]
    parts = [
        *seeds,
        *trials,
        run_tables.cost(results),
        run_tables.resources(results),
        run_tables.evaluated_splits(results),
    ]
    return Section("Every run", (), parts, detail=True)


def _is_complete(results: Results) -> bool:
    return results.count + results.trials_finished == results.total + results.trials_total


def _is_provisional(results: Results) -> bool:
    """Whether runs of a fixed number of seeds remain: p does not allow for an end after a look."""
    return not (results.spec.until or _is_complete(results))


def _marked(sentences: Sequence[str], provisional: bool) -> list[str]:
    return [f"Provisional: {sentence}" if provisional else sentence for sentence in sentences]


def _progress(results: Results) -> str:
    trials = f", {results.trials_finished} of {results.trials_total} runs of trials" * bool(
        results.trials_total
    )
    provisional = "" if _is_complete(results) else ": provisional"
    return f"{results.spec.name}: {results.count} of {results.total} runs finished{trials}{provisional}"
