"""The main job on real data: a naturally trained network is retrained and then withstands attacks that broke it."""

import pytest

from art_entropic.benchmark.plan import BenchmarkPlan
from art_entropic.benchmark.run import run_benchmark
from art_entropic.records import EvaluationRecord, ProfileRecord, TrainingRecord
from art_entropic.report.page import write_report


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_entropic_retraining_raises_robust_accuracy_far_above_natural_on_digits(tmp_path):
    plan = BenchmarkPlan(
        problem="digits",
        defences=("natural", "entropic", "entropic_channel"),
        battery="quick",
        n_examples=100,
        nb_epochs=20,
        checks=False,
    )
    records = run_benchmark(plan, tmp_path, verbose=False)
    assert {r.status for r in records if isinstance(r, TrainingRecord)} == {"done"}
    found = {(r.framework, r.defence): r for r in records if isinstance(r, EvaluationRecord)}
    for framework in ("pytorch", "tensorflow"):
        natural, interval, channel = (found[framework, name] for name in ("natural", "entropic", "entropic_channel"))
        assert natural.clean.value > 0.93 and natural.robust.value < 0.25
        assert channel.clean.value > 0.93 and channel.robust.value > natural.robust.value + 0.3
        assert interval.robust.low > 0
        for one in (interval, natural):
            assert one.certified is None or one.certified.value <= one.robust.value
    profiles = [record for record in records if isinstance(record, ProfileRecord)]
    assert [record.framework for record in profiles] == ["pytorch", "tensorflow"]
    for record in profiles:
        assert set(record.training_keys) == {"natural", "entropic"} and record.n == 100
        reach = {row.model: float(row.value) for row in record.rows if row.measure == "gradient"}
        assert reach["entropic"] < 0.7 * reach["natural"]
    assert all(path.stat().st_size > 1000 for path in write_report(tmp_path))
    again = run_benchmark(plan, tmp_path, verbose=False)
    assert [record.key for record in again] == [record.key for record in records]
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == len(records)
