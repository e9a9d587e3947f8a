"""What is published is what the records say: pages and plans against results/."""

import importlib.util
from pathlib import Path

import pytest

from art_entropic.benchmark.cells import plan_jobs, profiles_of
from art_entropic.benchmark.costs import recorded_costs
from art_entropic.benchmark.plan import BenchmarkPlan, read_plan, resolved
from art_entropic.benchmark.store import as_published
from art_entropic.records import EvaluationRecord, ProfileRecord, TrainingRecord, read_records
from art_entropic.report.sections import sections

ROOT = Path(__file__).parent.parent
PLANS = sorted((ROOT / "benchmarks" / "plans").glob("*.toml"))


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_made_from_the_records(tables):
    found = tables.load()
    assert tables.PAGE.read_text(encoding="utf-8") == tables.benchmarks(found)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.headline(found) in page and tables.printed() in page
    assert tables.costs() in (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
    blocks = [tables.layers(measure) for measure in ("rivals", "noise", "interval")]
    for block in (*blocks, tables.likeness(), tables.decisions()):
        assert block in page
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert tables.evaluations() in page and tables.across_frameworks() in page
    page = (ROOT / "docs" / "growth.md").read_text(encoding="utf-8")
    for block in (tables.growth_with_data(), tables.growth_with_network(), tables.growth_of_memory(), tables.imagenet()):
        assert block in page
    assert tables.networks() in (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "claim.md").read_text(encoding="utf-8")
    assert tables.claim(found[tables.CLAIM]) in page and tables.claim_l2(found) in page


def test_expected_times_are_those_of_the_records(tables):
    """The median of the trainings of one network, here of a single one, for an epoch of 10,000 points."""
    made = {costs.place: costs for costs in tables.costs_of_comparisons()}
    default = resolved(BenchmarkPlan())
    assert (default.problem, default.network, default.battery) not in made
    assert list(made.values()) == [costs for costs in recorded_costs() if costs.place in made]
    assert len(made) == len(recorded_costs()) - 1
    (record,) = (
        one
        for one in read_records(ROOT / "results" / "breadth-vit.jsonl")
        if isinstance(one, TrainingRecord) and one.defence == "fbf"
    )
    costs = made["fashion_mnist", "vit", "standard"]
    told = costs.of(
        resolved(BenchmarkPlan(problem="fashion_mnist")), "pytorch", "fbf", "train", record.nb_epochs, record.n_train
    )
    assert told == pytest.approx(record.seconds, rel=1e-2)


def test_a_page_can_be_made_of_what_is_there_so_far(tables):
    records = list(read_records(ROOT / "results" / "mnist-0.3.jsonl"))
    natural = [record for record in records if record.defence == "natural"]
    (section,) = sections(natural)
    assert tables.comparison(section) and tables.overview({"mnist-0.3": section})
    (told,) = tables.unrun("mnist-0.3", section)
    assert "MadryPGD (ART)" in told and "Natural" not in told
    unattacked = [record for record in records if isinstance(record, TrainingRecord) or record.defence != "trades"]
    (section,) = sections(unattacked)
    assert "rows" in tables.unrun("mnist-0.3", section)[0] and "TRADES (ART)" in tables.unrun("mnist-0.3", section)[0]


def test_every_plan_has_its_place_on_the_page(tables):
    assert {plan.stem for plan in PLANS} == set(tables.ALL)


@pytest.mark.parametrize("plan", PLANS, ids=lambda path: path.stem)
def test_published_records_are_those_of_their_plan(plan):
    records = list(read_records(ROOT / "results" / f"{plan.stem}.jsonl"))
    settings = resolved(read_plan(plan))
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    trained = {record.key for record in records if isinstance(record, TrainingRecord) and record.status == "done"}
    assert {record.training_key for record in evaluations} == trained
    assert records == list(map(as_published, records)), "they are much larger with examples, and weights are elsewhere"
    for record in records:
        assert (record.problem, record.network, record.eps) == (settings.problem, settings.network, settings.eps)
        assert record.seed in settings.seeds and record.framework in settings.frameworks
    for record in evaluations:
        assert record.battery == settings.battery
        assert (record.clean.n, record.first_example) == (settings.n_examples, settings.first_example)
        broken = sum(attack.broken for attack in record.attacks)
        assert record.robust.correct == record.clean.correct - broken
        assert record.certified is None or record.certified.correct <= record.robust.correct
    if records:
        source = records[0].provenance
        jobs = plan_jobs(settings, source.data_sha256, source.versions)
        planned = {(job.framework, job.seed, job.defence, job.variant.name if job.variant else "") for job in jobs}
        keys = {key for job in jobs for key in (job.training_key, job.evaluation_key, job.checks_key)}
        keys |= {profile.key for profile in profiles_of(settings, jobs)}
        assert {record.key for record in records} <= keys, "the plan would not find these records: it would train them again"
        cells = [record for record in records if not isinstance(record, ProfileRecord)]
        assert {(record.framework, record.seed, record.defence, record.variant) for record in cells} <= planned
        trained_here = {record.key for record in records if isinstance(record, TrainingRecord)}
        for record in records:
            if isinstance(record, ProfileRecord):
                assert set(record.training_keys.values()) <= trained_here
    variants = {(variant.defence, variant.name): variant for variant in settings.variants}
    for record in records:
        assert record.n_train_limit == settings.n_train
        if isinstance(record, TrainingRecord):
            variant = variants.get((record.defence, record.variant))
            assert record.nb_epochs == settings.epochs_of(record.defence, variant)
            assert record.settings["learning_rate"] == settings.problem_spec.learning_rate
