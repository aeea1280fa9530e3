"""What a study says, from its records alone: sentences, tables and figures, and the files that hold them."""

from __future__ import annotations

from pathlib import Path

from cdgrad.study import StudyError, curves, export, files, page, plots, render, searches, stats, tables
from cdgrad.study.plots import Drawing
from cdgrad.study.records import FILE
from cdgrad.study.remarks import environments, remarks
from cdgrad.study.render import Document, Section
from cdgrad.study.results import Results, read

__all__ = ["Results", "document", "read", "write"]


def document(results: Results) -> Document:
    """The study in sentences, tables and figures."""
    spec = results.spec
    several = len(spec.cells) > 1
    sections: list[Section] = []
    if several and results.comparisons:
        overview = Section("All cells", (), (plots.overview(results),), (tables.summary(results),))
        sections.append(overview)
    sections += [_cell(results, cell, several) for cell in spec.cells]
    if results.searches:
        sections.append(Section("Tuning", (), (), (tables.tuning(results),)))
    sections.append(_details(results))
    return Document(
        title=spec.title,
        summary=_progress(results),
        verdicts=_across_cells(results) if several else _verdicts(results, next(iter(spec.cells))),
        remarks=remarks(results),
        sections=sections,
        environment=[f"{key}: {' and '.join(found)}" for key, found in environments(results).items()],
        spec=spec.text,
    )


def write(results: Results, folder: Path, found: Document | None = None) -> list[Path]:
    """Write the files of a report; their paths, most useful first.

    report.html, report.md, runs.csv, with trials also trials.csv, and every figure as a PNG.

    Args:
        results: the study.
        folder: where to; it exists.
        found: the document of `results`, where it is made already.

    Raises:
        StudyError: a file cannot be written.
    """
    doc = found or document(results)
    content = {
        "report.html": page.html(doc).encode(),
        "report.md": render.markdown(doc).encode(),
        "runs.csv": export.csv_text(export.final_runs(results)).encode(),
    }
    if results.searches:
        content["trials.csv"] = export.csv_text(export.trial_runs(results)).encode()
    for figure in doc.figures:
        assert isinstance(figure, Drawing)
        content[f"{figure.name}.png"] = figure.png()
    try:
        manifest = files.Manifest(folder, FILE)
        if foreign := manifest.foreign([*content]):
            raise StudyError(
                f"the report is not written: {folder / foreign} is not cdgrad's, or was changed since; "
                f"move it away, and run cdgrad report {folder}"
            )
        for name, text in content.items():
            manifest.write(name, text)
    except OSError as error:
        raise StudyError(f"the report cannot be written in {folder}: {error.strerror or error}") from error
    return [folder / name for name in content]


def _cell(results: Results, cell: str, several: bool) -> Section:
    """What was measured in a cell; its verdicts, too, where there are several cells."""
    compared = results.in_cell(cell)
    drawn = [plots.paired_differences(results, cell)] if compared else []
    others = (curves.learning_curves, searches.lam_sweep, searches.tuning_scatter, curves.gradient_curves)
    drawn += [drawing for draw in others if (drawing := draw(results, cell))]
    found = [tables.errors(results, cell)]
    if compared:
        found += [tables.differences(results, cell), tables.power(results, cell)]
    return Section(cell, _verdicts(results, cell) if several else (), drawn, found)


def _details(results: Results) -> Section:
    """Every number that the tables are made of."""
    cells = results.spec.cells
    found = [tables.seeds(results, cell) for cell in cells]
    found += [tables.trials(search, *place) for place, search in results.searches.items() if search.runs]
    return Section("Every run", (), (), [*found, tables.parts(results)], detail=True)


def _progress(results: Results) -> str:
    trials = f", {results.trials_made} of {results.trials_total} runs of trials" * bool(results.trials_total)
    done = results.count + results.trials_made == results.total + results.trials_total
    provisional = "" if done else ": provisional"
    return f"{results.spec.name}: {results.count} of {results.total} runs finished{trials}{provisional}"


def _verdicts(results: Results, cell: str) -> list[str]:
    baseline = results.spec.baseline
    return [stats.verdict(arm, baseline, found, p) for arm, (found, p) in results.in_cell(cell).items()]


def _across_cells(results: Results) -> list[str]:
    """A sentence an arm: in which cells it was better, worse or neither."""
    sentences: list[str] = []
    for arm in results.spec.arms:
        found = {cell: compared for (cell, a), compared in results.comparisons.items() if a == arm}
        if not found:
            continue
        shown = {cell: c.mean for cell, (c, p) in found.items() if stats.is_shown(c, p)}
        bounds = [
            max(map(abs, c.interval)) for cell, (c, _) in found.items() if cell not in shown and c.pairs > 1
        ]
        sentence = (
            f"{arm} against {results.spec.baseline}, {len(found)} cells: "
            f"fewer errors in {_named([cell for cell, mean in shown.items() if mean < 0])}, "
            f"more in {_named([cell for cell, mean in shown.items() if mean > 0])}, "
            f"no difference shown in {len(found) - len(shown)}"
        )
        if bounds:
            bound = stats.rounded_up(max(bounds))
            sentence += f", where no difference larger than {bound} points is supported at 95 %"
        sentences.append(f"{sentence}.")
    return sentences


def _named(cells: list[str]) -> str:
    return f"{len(cells)} ({', '.join(cells)})" if cells else "0"
