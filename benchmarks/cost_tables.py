"""Tables of what was measured: costs, their growth, evaluations, and frameworks side by side."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec
from published import BREADTH, COMPARISONS, RESULTS, ROOT, measurements

from art_entropic.backends.registry import FRAMEWORKS
from art_entropic.benchmark.costs import FILE, Costs, cost_key, recorded_costs
from art_entropic.benchmark.defences import DEFENCES
from art_entropic.benchmark.plan import BenchmarkPlan, resolved
from art_entropic.files import write_whole
from art_entropic.measures import MEASURES
from art_entropic.records import ChecksRecord, EvaluationRecord, TrainingRecord, read_records
from art_entropic.report.sections import duration, percent
from art_entropic.report.table import NOTHING, markdown, table_of

IMAGENET, IMAGENET_EPOCHS = 1_281_167, 10


def costs() -> str:
    steps = {str(r.settings["framework"]): r.values for r in measurements("step_cost")}
    memory = {(str(r.settings["framework"]), str(r.settings["measure"])): r.values for r in measurements("memory")}
    rows = [
        [
            FRAMEWORKS[framework].title,
            f"`{measure}`",
            f"{values['natural_ms']:.1f}",
            f"{values[f'{measure}_ms']:.1f}",
            f"{values[f'{measure}_ratio']:.2f}",
            f"{memory[framework, measure]['peak_gib']:.2f}" if (framework, measure) in memory else NOTHING,
        ]
        for framework, values in steps.items()
        for measure in MEASURES
        if f"{measure}_ms" in values
    ]
    headings = ["framework", "measure", "natural step, ms", "entropic step, ms", "ratio", "peak memory of an MNIST epoch, GiB"]
    return markdown(table_of(headings, rows, words=["measure"]))


def evaluations() -> str:
    """What `benchmarks/evaluation.py` found."""
    rows = []
    for record in measurements("evaluation"):
        found = record.values
        cells = [f"{found[f'planted_found_{battery}']:.0%} of {found['planted_n']:.0f}" for battery in ("quick", "standard")]
        robust = [percent(found[f"robust_{battery}"]) for battery in ("standard", "autoattack")]
        disagree = f"{found['only_standard_breaks']:.0f} / {found['only_autoattack_breaks']:.0f}"
        seconds = [duration(found[f"seconds_{name}"]) for name in ("standard", "autoattack", "plain")]
        where = f"{record.settings['plan']}, {DEFENCES[str(record.settings['defence'])].title}"
        rows.append([where, *cells, *robust, disagree, " : ".join(seconds)])
    headings = [
        "network",
        "planted, found by `quick`",
        "by `standard`",
        "robust %, `standard`",
        "AutoAttack",
        "points that only `standard` / only AutoAttack breaks",
        "seconds, `standard` : AutoAttack : ART's attacks one after another",
    ]
    return markdown(table_of(headings, rows)) if rows else "Not run yet."


def certificates() -> str:
    """What `benchmarks/certificates.py` proved."""
    rows = []
    for record in measurements("certificates"):
        found, told = record.values, record.settings
        proved = [percent(found[f"{method}_proved"]) for method in ("boxes_of_logits", "ibp", "crown-ibp", "crown", "best")]
        seconds = [f"{found[f'{method}_cpu_seconds_per_1000']:.3g}" for method in ("ibp", "crown-ibp", "crown", "best")]
        where = f"`{told['network']}` at {told['eps']:g}"
        rows.append([where, percent(found["survive_quick"]), *proved, " : ".join(seconds)])
    headings = [
        "network",
        "survive `quick` %",
        "proved %: boxes of the logits",
        "`ibp`",
        "`crown-ibp`",
        "`crown` (first 100 points)",
        "`best`",
        "CPU seconds for 1,000 points, `ibp` : `crown-ibp` : `crown` : `best`",
    ]
    return markdown(table_of(headings, rows)) if rows else "Not run yet."


def across_frameworks() -> str:
    """What `benchmarks/evaluation.py` found of the same weights in both frameworks."""
    rows = []
    for record in measurements("frameworks"):
        found = record.values
        robust = [percent(found[f"robust_{framework}"]) for framework in ("tensorflow", "pytorch")]
        disagree = f"{found['only_tensorflow_breaks']:.0f} / {found['only_pytorch_breaks']:.0f}"
        seconds = [duration(found[f"seconds_{framework}"]) for framework in ("tensorflow", "pytorch")]
        where = f"{record.settings['plan']}, {DEFENCES[str(record.settings['defence'])].title}"
        rows.append([where, *robust, disagree, " : ".join(seconds), f"{found['ratio']:.2f}"])
    headings = [
        "network",
        "robust %, TensorFlow",
        "PyTorch",
        "points that only TensorFlow / only PyTorch breaks",
        "seconds",
        "ratio",
    ]
    return markdown(table_of(headings, rows)) if rows else "Not run yet."


def epochs_of_each_kind() -> str:
    """What `benchmarks/epoch_cost.py` found."""
    rows = []
    for record in measurements("epoch_cost"):
        found = record.values
        seconds = [f"{found[f'{kind}_s']:.1f}" for kind in ("natural", "interval", "channel", "madry_pgd")]
        ratios = [f"{found[f'{kind}_ratio']:.2f}" for kind in ("interval", "channel")]
        of_madry = [f"{found[f'{kind}_s'] / found['madry_pgd_s']:.2f}" for kind in ("interval", "channel")]
        where = f"{FRAMEWORKS[str(record.settings['framework'])].title}, {record.settings['device']}"
        rows.append([where, *seconds, *(" / ".join(pair) for pair in (ratios, of_madry))])
    headings = ["on", "natural, s", "`interval`, s", "`channel`, s", "MadryPGD, s", "ours to natural", "ours to MadryPGD"]
    return markdown(table_of(headings, rows))


def growth_with_data() -> str:
    rows = []
    for framework, found in growth("data"):
        for measure in ("interval", "channel"):
            numbers = [f"{found[f'{measure}_{name}']:.2f}" for name in ("one_batch_s", "s", "4x_s", "4x_of_linear")]
            rows.append([framework, f"`{measure}`", *numbers])
    headings = ["framework", "measure", "one batch", "3,200 images", "12,800 images", "of linear"]
    return markdown(table_of(headings, rows, words=["measure"]))


def growth_with_network() -> str:
    rows = []
    for framework, found in growth("network"):
        for label, title in (("base", "small CNN"), ("4x_width", "4 x the width"), ("4x_depth", "4 x the middle")):
            steps = [f"{found[f'{label}_{kind}_ms']:.1f}" for kind in ("natural", "interval", "channel")]
            ratios = [f"{found[f'{label}_{kind}_ratio']:.2f}" for kind in ("interval", "channel")]
            rows.append([framework, title, f"{found[f'{label}_multiplications_m']:.1f}", *steps, *ratios])
    headings = ["framework", "network", "multiplications, millions", "natural step, ms", "`interval`, ms", "`channel`, ms"]
    return markdown(table_of([*headings, "`interval`, ratio", "`channel`, ratio"], rows, words=["network"]))


def growth_of_memory() -> str:
    rows = []
    for framework, found in growth("memory"):
        for measure in ("interval", "channel"):
            cases = [f"{found[f'{measure}_{case}_mib']:.0f}" for case in ("base", "4x_data", "4x_batch", "4x_width")]
            rows.append([framework, f"`{measure}`", *cases])
    headings = ["framework", "measure", "12,800 images, batches of 128", "4 x the data", "4 x the batch", "4 x the width"]
    return markdown(table_of(headings, rows, words=["measure"]))


def growth(part: str) -> list[tuple[str, dict[str, float]]]:
    """(framework, what `benchmarks/growth.py` found) of one of its parts."""
    found = [record for record in measurements("growth") if record.settings["part"] == part]
    return [(FRAMEWORKS[str(record.settings["framework"])].title, record.values) for record in found]


def imagenet() -> str:
    """What `benchmarks/imagenet.py cost` found, and ten epochs on paper."""
    rows = []
    for record in measurements("imagenet"):
        for kind, title in (
            ("natural", "natural"),
            ("channel", "`channel`"),
            ("interval", "`interval`"),
            ("madry_pgd", "MadryPGD"),
        ):
            seconds = record.values[f"{kind}_s_an_image"]
            ratio = seconds / record.values["natural_s_an_image"]
            hours = seconds * IMAGENET * IMAGENET_EPOCHS / 3600
            where = f"{record.settings['device']}, batches of {record.settings['batch_size']}"
            rows.append([title, where, f"{seconds:.3f}", f"{ratio:.2f}", f"{hours:,.0f}"])
    headings = ["step", "on", "s an image, measured", "ratio to natural", "extrapolated: hours for ten epochs of ImageNet"]
    return markdown(table_of(headings, rows, words=["on"]))


# -------------------------------------------------------------------------------- what comes with the package


def keep_costs(tables: Iterable[Costs]) -> None:
    """Write tables of costs into the package, in place of those of the same problem, network and battery."""
    kept = {costs.place: costs for costs in (*recorded_costs(), *tables)}
    content = msgspec.json.format(msgspec.json.encode([kept[place] for place in sorted(kept)]), indent=1)
    write_whole(ROOT / "art_entropic" / "benchmark" / FILE, content + b"\n")


def costs_of_comparisons() -> list[Costs]:
    """What the published comparisons took, except that of the default plan, which `benchmarks/first_command.py` measures."""
    default = resolved(BenchmarkPlan())
    together: dict[tuple[str, str, str], list[Timed]] = defaultdict(list)
    for name in (*COMPARISONS, *BREADTH):
        path = RESULTS / f"{name}.jsonl"
        records = [record for record in read_records(path) if not getattr(record, "variant", "")] if path.exists() else []
        timed = [one for one in records if isinstance(one, (TrainingRecord, EvaluationRecord, ChecksRecord))]
        for battery in {one.battery for one in timed if isinstance(one, EvaluationRecord)}:
            place = timed[0].problem, timed[0].network, battery
            if place != (default.problem, default.network, default.battery):
                together[place] += timed
    return [_costs(place, records) for place, records in sorted(together.items(), key=lambda item: item[0])]


Timed = TrainingRecord | EvaluationRecord | ChecksRecord


def _costs(place: tuple[str, str, str], records: Sequence[Timed]) -> Costs:
    """The median over seeds and tables, of one epoch of 10,000 points and of 1,000 attacked points."""
    n_train, n_examples = 10_000, 1_000
    seconds: dict[str, list[float]] = defaultdict(list)
    attacked = {one.key: one.clean.n for one in records if isinstance(one, EvaluationRecord)}
    for one in records:
        key = (one.framework, one.defence)
        if isinstance(one, TrainingRecord):
            if one.status == "done":
                seconds[cost_key(*key, "train")].append(one.seconds * n_train / (one.nb_epochs * one.n_train))
        elif isinstance(one, EvaluationRecord):
            seconds[cost_key(*key, "attack")].append(one.seconds * n_examples / one.clean.n)
        else:
            seconds[cost_key(*key, "check")].append(one.seconds * n_examples / attacked[one.evaluation_key])
    newest = max(records, key=lambda one: one.provenance.created).provenance
    problem, network, battery = place
    return Costs(
        created=newest.created,
        processor=newest.processor,
        problem=problem,
        network=network,
        battery=battery,
        n_train=n_train,
        n_examples=n_examples,
        epochs={one.defence: 1 for one in records if isinstance(one, TrainingRecord)},
        seconds={key: round(statistics.median(several), 1) for key, several in sorted(seconds.items())},
    )
