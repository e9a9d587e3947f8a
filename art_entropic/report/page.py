"""The report of a run, as Markdown and as one HTML page."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.store import RECORDS
from art_entropic.extras import OPTIONAL_PACKAGES, missing
from art_entropic.files import write_whole
from art_entropic.records import MeasurementRecord, Provenance, TrainingRecord, read_records
from art_entropic.report.figures import figures, stroke
from art_entropic.report.gallery import galleries
from art_entropic.report.layers import information
from art_entropic.report.sections import RunRecord, Section, headlines, sections, title_of
from art_entropic.report.sentences import summary
from art_entropic.report.table import Table, grouped, markdown, markdown_text
from art_entropic.report.tables import curves, results, trainings, variants, verdicts


@dataclass(frozen=True)
class Origin:
    """What the records say of how they were made; more than one entry where they disagree."""

    commands: tuple[str, ...]
    data: tuple[str, ...]
    machines: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]
    created: str


def origin(records: Sequence[RunRecord]) -> Origin:
    """Collect the provenance of records, equal entries once."""
    sources: list[Provenance] = [record.provenance for record in records]
    versions: dict[str, dict[str, None]] = {}
    for source in sources:
        for package, version in {"Python": source.python, **source.versions}.items():
            versions.setdefault(package, {})[version] = None
    return Origin(
        commands=tuple(dict.fromkeys(source.command for source in sources)),
        data=tuple(dict.fromkeys(_data_line(record) for record in records if isinstance(record, TrainingRecord))),
        machines=tuple(dict.fromkeys(map(_machine, sources))),
        versions=tuple((package, " / ".join(found)) for package, found in versions.items()),
        created=max(source.created for source in sources),
    )


def _machine(source: Provenance) -> str:
    # A processor is named anyway.
    device = "" if source.device in (None, "cpu") else f"{source.device}, "
    return f"{device}{source.processor}, {source.cores} cores, {source.platform}"


def _data_line(record: TrainingRecord) -> str:
    return f"{record.settings.get('data', record.problem)}, sha256 {record.provenance.data_sha256}"


def write_report(folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Build ``report.md`` and ``report.html`` from the ``records.jsonl`` of a folder.

    Returns:
        Paths of the Markdown and of the HTML file.
    Raises:
        FileNotFoundError: the folder has no ``records.jsonl``.
        ValueError: it holds no record, or one of an unknown schema.
    """
    import jinja2

    home = Path(folder)
    records = load(home)
    comparisons = sections(records)
    titles = headlines(comparisons)
    drawing = importlib.util.find_spec("matplotlib") is not None
    views = [
        {
            "section": section,
            "title": title,
            "results": results(section),
            "variants": variants(section),
            "summary": summary(section),
            "verdicts": verdicts(section),
            "curves": curves(section),
            "trainings": trainings(section),
            "figures": figures(section, salt=f"s{number}") if drawing else [],
            "information": information(section, records, salt=f"s{number}", drawing=drawing),
            "galleries": galleries(section),
            "legend": _legend(section),
            "notes": _notes(section),
            "failures": _failures(section),
        }
        for number, (title, section) in enumerate(zip(titles, comparisons, strict=True))
    ]
    context = {
        "title": titles[0] if len(titles) == 1 else "Robustness report",
        "views": views,
        "origin": origin(records),
        "no_figures": None if drawing else f"Figures were left out because {missing(*OPTIONAL_PACKAGES['matplotlib'])}",
    }
    paths = home / "report.md", home / "report.html"
    for path in paths:
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("art_entropic.report"),
            autoescape=path.suffix == ".html",
            finalize=_as_text if path.suffix == ".md" else None,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters |= {"grouped": grouped, "markdown": _as_markdown}
        text = environment.get_template(f"{path.name}.j2").render(context)
        write_whole(path, text.encode())
    return paths


def _as_text(value: object) -> object:
    """Texts of the user's as texts; what is Markdown already, and a command, which stands in a block of code, as they are."""
    from markupsafe import Markup

    return markdown_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _as_markdown(table: Table) -> str:
    from markupsafe import Markup

    return Markup(markdown(table))


def load(folder: Path) -> list[RunRecord]:
    """What a run's folder knows of trainings, evaluations, checks and profiles, in order.

    Raises:
        FileNotFoundError: the folder has no ``records.jsonl``.
        ValueError: it holds none.
    """
    path = folder / RECORDS
    if not path.exists():
        raise FileNotFoundError(f"`folder` must hold a {RECORDS} that `art-entropic benchmark` wrote, got {folder}")
    records = [record for record in read_records(path) if not isinstance(record, MeasurementRecord)]
    if not records:
        raise ValueError(f"{path} holds no record of a training or an evaluation: nothing was finished in this folder")
    return records


def _legend(section: Section) -> dict[str, list[dict[str, str]]]:
    defences = {row.defence_title: row.css_colour for row in section.main_rows if row.robust is not None}
    return {
        "defences": [{"title": title, "colour": shade} for title, shade in defences.items()],
        "frameworks": [
            {
                "title": title_of(FRAMEWORKS, name),
                "dash": {"-": "none", "--": "5 3"}.get(stroke(name)[0], "1 3"),
                "marker": stroke(name)[1],
            }
            for name in section.frameworks
        ],
    }


def _notes(section: Section) -> list[tuple[str, tuple[str, ...]]]:
    """What could not be made equal, by defence and framework."""
    return [(row.title, row.notes) for row in section.rows if row.notes]


def _failures(section: Section) -> list[str]:
    """Attacks that stopped with an error: they broke nothing, which must not pass for robustness."""
    return [
        f"{outcome.attack} against {row.defence_title} on {row.framework_title}: {outcome.error}"
        for row in section.rows
        for outcome in row.attacks
        if outcome.error
    ]
