"""Shards of a cell: attacked by themselves, joined once all are there."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from world import SMALL, World

from art_entropic.benchmark.plan import Variant
from art_entropic.records import (
    EvaluationRecord,
    TrainingRecord,
    pack,
)

SPLIT = msgspec.structs.replace(SMALL, frameworks=("tensorflow",), defences=("entropic",), points_per_shard=4, first_example=3)


def test_shards_of_points_are_attacked_one_by_one_with_seeds_of_their_own(world: World, tmp_path: Path) -> None:
    world.n_pictures = 1
    records = world.run(tmp_path, msgspec.structs.replace(SPLIT, seeds=(7,), checks=True))
    for number, (_, x, told) in enumerate(world.evaluated):
        start = 4 * (number % 3)
        np.testing.assert_array_equal(x, world.data.x_test[3 + start : 3 + min(start + 4, 10)])
        assert (told["seeds"] == 7) == (start == 0)
    assert len({told["seeds"] for _, _, told in world.evaluated}) == 3
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    for record in evaluations:
        assert (record.clean.correct, record.clean.n, record.first_example, record.seconds) == (10, 10, 3, 1.5)
        assert [example.index for example in record.examples] == [3]
    assert len(world.checked) == len(evaluations) == 2  # once for each network, on all points
    assert not (tmp_path / "attacks").exists() or not list((tmp_path / "attacks").iterdir())


def test_one_shard_for_all_points_is_the_evaluation_without_shards(world: World, tmp_path: Path) -> None:
    whole = world.run(tmp_path, msgspec.structs.replace(SPLIT, points_per_shard=None))
    asked = len(world.evaluated)
    for size in (10, 11):
        assert world.run(tmp_path, msgspec.structs.replace(SPLIT, points_per_shard=size)) == whole
    assert len(world.evaluated) == asked


def test_shards_of_weights_that_were_trained_again_are_done_again(world: World, tmp_path: Path) -> None:
    world.stops_after = 4
    with pytest.raises(KeyboardInterrupt):
        world.run(tmp_path, SPLIT)
    (shard,) = (tmp_path / "attacks").glob("*/shard-*.json")
    (weights,) = (tmp_path / "weights").glob("*-entropic-*.fake")
    told = weights.read_text()
    world.stops_after, world.evaluated = None, []
    weights.write_text(told.replace("]", ', "other"]'))
    world.run(tmp_path, SPLIT)
    assert len(world.evaluated) == 3
    assert not shard.exists()


def test_interrupt_between_shards_keeps_those_that_are_finished(world: World, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(SPLIT, seeds=(0, 1))
    world.stops_after = 11
    with pytest.raises(KeyboardInterrupt):
        world.run(tmp_path, plan)
    *done, last = world.status(tmp_path, plan)
    assert ([cell.state for cell in done], last.state) == (["done"] * 3, "attack")
    np.testing.assert_allclose(last.seconds or 0, 1.5 * 2 / 10)  # of 1.5 seconds for 10 points, for the last shard of 2
    world.stops_after, world.evaluated = None, []
    records = world.run(tmp_path, plan)
    assert [len(x) for _, x, _ in world.evaluated] == [2]
    assert [record.clean.n for record in records if isinstance(record, EvaluationRecord)] == [10] * 4


@pytest.mark.parametrize("size", [None, 4])
def test_many_workers_give_the_records_of_one_process_with_and_without_shards(
    world: World, tmp_path: Path, size: int | None
) -> None:
    def told(records: list[Any]) -> list[Any]:
        timeless = {"seconds": 0.0, "provenance": None}
        return [
            msgspec.structs.replace(record, **timeless, **({"settings": {}} if isinstance(record, TrainingRecord) else {}))
            for record in records
        ]

    plan = msgspec.structs.replace(
        SMALL, points_per_shard=size, seeds=(0, 1), checks=True,
        variants=(Variant("from scratch", "entropic_interval", start="random"),),
    )  # fmt: skip
    alone = world.run(tmp_path / "alone", plan)
    tally = [len(world.trained), len(world.evaluated), len(world.checked)]
    with ThreadPoolExecutor(4) as pool:
        records = world.run(tmp_path / "pool", plan, executor=pool)
        assert [len(world.trained), len(world.evaluated), len(world.checked)] == [2 * number for number in tally]
        assert world.run(tmp_path / "pool", plan, executor=pool) == records
    assert told(records) == told(alone)
    assert [len(world.trained), len(world.evaluated), len(world.checked)] == [2 * number for number in tally]
    # The checks of every network had the natural one to transfer from, that which started from random weights too.
    asked = [repr((weights, sources)) for weights, _, _, sources in world.checked]
    assert sorted(asked[: tally[2]]) == sorted(asked[tally[2] :])


def test_the_shards_of_one_network_are_attacked_at_the_same_time(
    tmp_path: Path,
) -> None:
    meeting = threading.Barrier(3, timeout=30)

    class Meeting(World):
        def evaluate(self, *given: Any, **options: Any) -> Any:
            meeting.wait()  # fails unless three of them come together
            return super().evaluate(*given, **options)

    world = Meeting()
    with ThreadPoolExecutor(3) as pool:
        world.run(tmp_path, SPLIT, executor=pool)
    assert len(world.evaluated) == 6


def test_a_damaged_shard_is_refused_by_name(world: World, tmp_path: Path) -> None:
    world.stops_after = 1
    with pytest.raises(KeyboardInterrupt):
        world.run(tmp_path, SPLIT)
    (shard,) = (tmp_path / "attacks").glob("*/shard-*.json")
    whole = shard.read_bytes()
    for damaged, wanted in (
        (whole[:-20], "not a shard of an evaluation, remove it to evaluate these points again"),
        (whole.replace(b'"schema":2', b'"schema":7'), "shard of schema 7, this version reads schema 2"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"^{re.escape(str(shard))}: {wanted}"):
            world.run(tmp_path, SPLIT)


def test_a_run_killed_between_shards_does_none_of_the_finished_ones_again(tmp_path: Path) -> None:
    command = [sys.executable, Path(__file__).with_name("split_victim.py"), tmp_path / "run"]
    killed = subprocess.run([*command, "3"], capture_output=True)
    assert killed.returncode < 0
    last = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    assert last.stdout.strip() == f"[(6, 9), (9, 10)] {pack(np.arange(10) % 3 == 0)}"
