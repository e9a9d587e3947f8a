"""Tables and figure of docs/analysis.md: where the information goes in the networks of the published comparisons."""

from __future__ import annotations

from published import MODELS, ROOT, measure_of, profiles

from art_entropic.analysis.figures import label_of, plot_layers
from art_entropic.analysis.readings import PROFILE_MEASURES
from art_entropic.backends.labels import LOGITS
from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.problems import PROBLEMS
from art_entropic.palette import NATURAL
from art_entropic.records import ProfileRecord, ProfileRow
from art_entropic.report.layers import labelled
from art_entropic.report.sections import colour, radius, title_of
from art_entropic.report.table import NOTHING, markdown, table_of

INFORMATION = ROOT / "docs" / "information.png"
READ = "rivals"  # drawn
WHOLE = ("label", "label_worst", "gradient")
INFORMATION_PANELS = ("mnist-0.3", "cifar10-8-255")


def per_unit(record: ProfileRecord, measure: str) -> dict[str, dict[str, float]]:
    """Layer -> model -> nats per unit."""
    table: dict[str, dict[str, float]] = {}
    for row in sorted(labelled(record).rows, key=lambda row: row.position):
        if row.measure == measure and row.layer and row.value is not None:
            table.setdefault(label_of(row), {})[row.model] = float(row.value) / row.units
    return table


def shares(record: ProfileRecord, measure: str) -> dict[str, tuple[float, list[float]]]:
    """Layer -> what it reads in the natural network, in nats per unit, and the share of that in each retrained network.

    Behind the input the share is of what enters the network: the corners that lead towards the rivals are each network's own,
    and those of some networks move fewer pixels.
    """
    table = {layer: found for layer, found in per_unit(record, measure).items() if set(MODELS) <= set(found)}
    entering = table["input"]
    found = {}
    for layer, values in table.items():
        own = [1.0 if layer == "input" else entering[model] / entering[NATURAL] for model in MODELS[1:]]
        parts = [values[model] / values[NATURAL] / part for model, part in zip(MODELS[1:], own, strict=True)]
        found[layer] = values[NATURAL], parts
    return found


def layers(measure: str) -> str:
    """One line a network and layer: what passes in the natural network, and which share of it in the retrained ones."""
    rows = []
    for (name, framework), record in profiles().items():
        where = titled(name, framework)
        for layer, (natural, parts) in shares(record, measure).items():
            rows.append([where, layer, f"{natural:.3g}", *(f"{part:.2f}" for part in parts)])
            where = ""
    retrained = (f"{DEFENCES[one].title}: share left" for one in MODELS[1:])
    return markdown(table_of(["networks of the table", "layer", "natural, nats per unit", *retrained], rows, words=["layer"]))


def titled(name: str, framework: str) -> str:
    return name if framework == "pytorch" else f"{name}, {FRAMEWORKS[framework].title}"


def likeness() -> str:
    """How alike adversarial training and ours change what gets through, one line a table."""
    from scipy.stats import spearmanr

    rows = []
    for (name, framework), record in profiles().items():
        cells = []
        for measure in ("rivals", "noise"):
            behind = [parts for layer, (_, parts) in shares(record, measure).items() if layer != "input"]
            adversarial, entropic = zip(*behind, strict=True)
            cells += [f"{adversarial[-1]:.2f} / {entropic[-1]:.2f}", f"{spearmanr(adversarial, entropic).statistic:.2f}"]
        rows.append([titled(name, framework), measure_of(name, framework), *cells])
    headings = ["networks of the table", "measure"]
    for told in ("rivals", "random"):
        headings += [f"{told}: share left at the logits, MadryPGD / Entropic", f"{told}: rank correlation over the layers"]
    return markdown(table_of(headings, rows, words=["measure"]))


def decisions() -> str:
    """What reaches the logits, and what it costs, one line a table."""
    rows = []
    for (name, framework), record in profiles().items():
        where = titled(name, framework)
        cells = []
        for measure in WHOLE:
            numbers = {row.model: row for row in record.rows if row.measure == measure and row.layer == ""}
            cells.append(" / ".join(_reading(numbers.get(model)) for model in MODELS))
        rows.append([where, str(record.n), *cells])
    headings = [
        "networks of the table",
        "n",
        *(f"{PROFILE_MEASURES[measure].title} [{PROFILE_MEASURES[measure].unit}]" for measure in WHOLE),
    ]
    return markdown(table_of(headings, rows))


def _reading(row: ProfileRow | None) -> str:
    return NOTHING if row is None or row.value is None else f"{float(row.value):.3g}"


def draw_information() -> None:
    """docs/information.png: what of a perturbation passes through the layers, natural, adversarially trained and entropic."""
    from matplotlib.figure import Figure

    found = profiles()
    shown = [labelled(found[name, "pytorch"]) for name in INFORMATION_PANELS if (name, "pytorch") in found]
    if not shown:
        return
    figure = Figure(figsize=(4.6 * len(shown), 3.9), layout="constrained")
    shades = {NATURAL: "#222222", **{model: colour(model) for model in MODELS[1:]}}
    for axes, record in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        plot_layers(axes, [row for row in record.rows if row.model in MODELS], READ, shades)
        axes.set_title(conclusion(record), loc="left", fontsize=10)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    handles, models = figure.axes[0].get_legend_handles_labels()
    figure.axes[0].legend(handles, [DEFENCES[model].title for model in models], frameon=False, fontsize=9)
    figure.savefig(INFORMATION, dpi=110, metadata={"Software": None})


def conclusion(record: ProfileRecord) -> str:
    """What a panel shows, in its title."""
    _, parts = shares(record, READ)[LOGITS]
    adversarial, entropic = (f"{100 * part:.0f} %" for part in parts)
    where = f"{title_of(PROBLEMS, record.problem).partition(' (')[0]}, L{record.norm} {radius(record.eps)}"
    return f"{where}: Entropic leaves {entropic}, MadryPGD\n{adversarial} of what reaches the natural network's logits"
