"""Plans: what they may ask for, their files, and the command that asks for the same."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest
from world import ABLATION, SMALL, World

from art_entropic.backends.errors import MissingFrameworkError
from art_entropic.benchmark.cells import plan_jobs
from art_entropic.benchmark.plan import BenchmarkPlan, Variant, default_folder, read_plan, resolved
from art_entropic.benchmark.problems import load_data
from art_entropic.benchmark.run import run_benchmark
from art_entropic.cli.main import main
from art_entropic.extras import install_command
from art_entropic.fields import field_specs
from art_entropic.measures import MEASURES, Channel, Interval, Schedule
from art_entropic.records import (
    read_records,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": "imagenet"}, "`problem` must be one of"),
        ({"frameworks": ("jax",)}, "`frameworks` must be one of"),
        ({"frameworks": ()}, "`frameworks` must name at least one"),
        ({"defences": ("magic",)}, "`defences` must be one of"),
        ({"battery": "tank"}, "`battery` must be one of"),
        ({"eps": 0.0}, "`eps` must be positive"),
        ({"eps": float("nan")}, "`eps` must be finite"),
        ({"eps": 8.0}, "did you mean 8/255"),
        ({"norm": 1}, "`norm` must be 'inf', np.inf or 2, got 1"),
        ({"norm": 2}, "`eps` must be given with norm 2, since that of digits is an Linf radius, got None"),
        ({"norm": 2, "eps": 9.0}, "8, the largest L2 distance between two points within `clip_values`, got 9.0"),
        (
            {"norm": 2, "eps": 0.5, "defences": ("fbf",)},
            "`norm` must be one that FBF (ART) can be trained for, only Linf, got '2'",
        ),
        ({"seeds": (-1,)}, "`seeds` must be whole numbers from 0"),
        ({"seeds": ()}, "`seeds` must name at least one"),
        ({"n_examples": 0}, "`n_examples` must be a whole number of at least 1, got 0"),
        ({"first_example": -1}, "`first_example` must be a whole number of at least 0, got -1"),
        ({"first_example": 20}, "`first_example` must be below the 20 test points, got 20"),
        ({"first_example": 11}, "`n_examples` must be at most the 9 test points from number 11 on, got 10"),
        ({"n_examples": 21}, "`n_examples` must be at most the 20 test points, got 21"),
        ({"points_per_shard": 0}, "`points_per_shard` must be a whole number of at least 1, got 0"),
        ({"nb_epochs": 0}, "`nb_epochs` must be a whole number of at least 1, got 0"),
        ({"network": "huge"}, "`network` must be one of 'small', 'mlp', got 'huge'"),
        ({"n_train": 1}, "`n_train` must be a whole number of at least 2, one point to train on and one to hold out, got 1"),
        ({"n_train": 51}, "`n_train` must be at most the 50 training points, got 51"),
        ({"variants": (Variant("a", "natural"),)}, "`variants[0].defence` must be one of 'uniform_noise', 'entropic'"),
        ({"augmentation": "mixup"}, "`augmentation` must be one of 'none', 'flip_crop', got 'mixup'"),
        ({"keep": "first"}, "`keep` must be one of 'last', 'best', got 'first'"),
        ({"variants": (Variant(" ", "entropic"),)}, "`variants[0].name` must not be empty, got ' '"),
        ({"variants": (Variant("a", "entropic"), Variant("a", "entropic"))}, "`variants[1].name` must differ from those of"),
        (
            {"variants": (Variant("a", "entropic", nb_epochs=0),)},
            "`variants[0].nb_epochs` must be a whole number of at least 1, got 0",
        ),
        ({"variants": (Variant("a", "entropic", start="warm"),)}, "`variants[0].start` must be one of 'natural', 'random'"),
        (
            {"variants": (Variant("a", "entropic", Interval(eps_factor=10.0)),)},
            "`variants[0].measure`, of 'a': `eps_factor` takes `eps` too far",
        ),
    ],
)
def test_bad_plans_are_refused_before_anything_is_written(
    world: World, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        world.run(tmp_path / "out", msgspec.structs.replace(SMALL, **changes))
    assert not (tmp_path / "out").exists()


def test_a_defence_that_cannot_change_the_network_is_refused_before_any_training() -> None:
    plan = BenchmarkPlan(problem="mnist", network="small_silu", defences=("entropic_smooth",), frameworks=("pytorch",))
    wanted = "`defences`, 'entropic_smooth' on the network 'small_silu': `classifier` must have layers with ReLU"
    with pytest.raises(ValueError, match=wanted):
        resolved(plan)


def test_no_framework_at_all_is_one_line_with_the_command() -> None:
    class Bare(World):
        def installed_frameworks(self) -> tuple[str, ...]:
            return ()

    with pytest.raises(MissingFrameworkError, match=re.escape(install_command("torch"))) as caught:
        Bare().run("nowhere")
    assert "\n" not in str(caught.value)


def test_command_asks_for_the_same_cells(world: World, tmp_path: Path) -> None:
    world.data = dataclasses.replace(world.data, sha256=load_data("digits").sha256)
    world.run(tmp_path, msgspec.structs.replace(SMALL, seeds=(0, 3), eps=8 / 255, points_per_shard=6))
    done = (tmp_path / "records.jsonl").read_bytes()
    command = next(read_records(tmp_path / "records.jsonl")).provenance.command
    assert main([*command.split()[1:], "--out", str(tmp_path), "--quiet"]) == 0
    assert (tmp_path / "records.jsonl").read_bytes() == done


def test_a_plan_for_an_l2_ball_hands_its_norm_to_all_that_know_one(world: World, tmp_path: Path) -> None:
    world.data = dataclasses.replace(world.data, sha256=load_data("digits").sha256)
    plan = msgspec.structs.replace(SMALL, eps=0.5, norm=2, defences=None)
    assert "fbf" in resolved(msgspec.structs.replace(plan, norm=float("inf"))).defences
    assert "fbf" not in resolved(plan).defences and "madry_pgd" in resolved(plan).defences
    plan = msgspec.structs.replace(SMALL, eps=0.5, norm=2)
    world.run(tmp_path, plan)
    records = list(read_records(tmp_path / "records.jsonl"))
    assert {(record.eps, record.norm) for record in records} == {(0.5, "2")}
    assert {options["norm"] for *_, options in world.trained} == {options["norm"] for *_, options in world.evaluated} == {"2"}
    assert resolved(plan).curve_eps == (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
    words = records[0].provenance.command.split()
    assert words[words.index("--norm") + 1] == "2" and "--norm" not in resolved(SMALL).command
    done = (tmp_path / "records.jsonl").read_bytes()
    assert main([*words[1:], "--out", str(tmp_path), "--quiet"]) == 0
    assert (tmp_path / "records.jsonl").read_bytes() == done


def test_a_plan_with_variants_but_no_file_has_a_command_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(tmp_path / "runs" / "digits", ABLATION)
    command = shlex.split(next(read_records(tmp_path / "runs" / "digits" / "records.jsonl")).provenance.command)
    assert command[:2] == ["python", "-c"]
    world.trained.clear()
    monkeypatch.chdir(tmp_path)
    imports, call = command[2].split("; ")
    names: dict[str, Any] = {}
    exec(imports, names)
    assert names["run_benchmark"] is run_benchmark
    exec(call, {**names, "run_benchmark": lambda plan: world.run(default_folder(plan), plan)})
    assert world.trained == []


@pytest.mark.parametrize(
    "twin", [Variant("the same", "entropic", nb_epochs=3), Variant("again", "entropic_channel", Channel())]
)
def test_rows_that_ask_for_the_same_training_are_refused(world: World, tmp_path: Path, twin: Variant) -> None:
    plan = msgspec.structs.replace(ABLATION, defences=("entropic", "entropic_channel"), variants=(twin,))
    with pytest.raises(ValueError, match=f"`variants` must differ from all other rows, got .*{twin.name}"):
        world.run(tmp_path / "out", plan)


def test_all_that_makes_a_variant_is_part_of_its_key(world: World, tmp_path: Path) -> None:
    changes = [
        {"measure": Interval(beta=0.0)}, {"measure": Interval(beta=0.2)}, {"measure": Interval()}, {"start": "random"},
        {"defence": "entropic_channel"}, {"nb_epochs": 4}, {"measure": Interval(schedule=Schedule(ramp=0.2))},
    ]  # fmt: skip
    variants = [Variant(**{"name": "one", "defence": "entropic", **change}) for change in changes]
    plans = [msgspec.structs.replace(ABLATION, variants=(variant,)) for variant in variants]
    plans += [msgspec.structs.replace(plans[0], augmentation="flip_crop"), msgspec.structs.replace(plans[0], keep="best")]
    plans.append(msgspec.structs.replace(plans[0], n_train=40))
    plans.append(msgspec.structs.replace(plans[0], problem="mnist", network="large"))
    plans.append(msgspec.structs.replace(plans[0], problem="mnist", network="small_silu"))
    keys = [job.training_key for plan in plans for job in plan_jobs(resolved(plan, world), "feed") if job.variant]
    assert len(set(keys)) == len(plans)


def test_other_defaults_of_a_measure_are_another_training(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> list[str]:
        return [job.training_key for job in plan_jobs(resolved(ABLATION, world), "feed")]

    before = keys()

    class Other(Interval, frozen=True, kw_only=True, tag="interval"):
        beta: float = 0.123

    monkeypatch.setitem(MEASURES, "interval", Other)
    # natural and what names its measure stay; entropic, which may choose the measure, does not
    assert [one == other for one, other in zip(before, keys(), strict=True)] == [True, False, True, True]


WHOLE = """checks = false
device = "cpu"
profile = false
title = "A table"
problem = "cifar10"
network = "six_dense"
frameworks = ["pytorch"]
defences = ["entropic", "fbf"]
battery = "quick"
norm = "inf"
eps = "8/255"
seeds = [0, 4]
n_examples = 7
first_example = 3
points_per_shard = 5
n_train = 100
nb_epochs = 2
nb_epochs_natural = 1
augmentation = "flip_crop"
keep = "best"

[[variants]]
name = "no information"
defence = "entropic_interval"
measure = { type = "interval", beta = 0.0, layers = "dense" }

[[variants]]
name = "from scratch"
defence = "entropic_channel"
start = "random"
nb_epochs = 5
"""


def test_a_plan_file_says_all_that_a_plan_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plans").mkdir()
    file = tmp_path / "plans" / "table one.toml"
    file.write_text(WHOLE)
    plan = read_plan(file)
    assert plan == BenchmarkPlan(
        problem="cifar10", network="six_dense", frameworks=("pytorch",), defences=("entropic", "fbf"), battery="quick",
        eps=8 / 255, seeds=(0, 4), n_examples=7, first_example=3, points_per_shard=5, n_train=100, nb_epochs=2,
        nb_epochs_natural=1, augmentation="flip_crop", keep="best", checks=False, profile=False, device="cpu",
        title="A table",
        variants=(
            Variant("no information", "entropic_interval", Interval(beta=0.0, layers="dense")),
            Variant("from scratch", "entropic_channel", start="random", nb_epochs=5),
        ),
        source="plans/table one.toml",
    )  # fmt: skip
    assert all(f"{name} = " in WHOLE for name in field_specs(BenchmarkPlan) if name not in ("source", "overrides", "variants"))
    assert resolved(plan).command == "art-entropic benchmark --plan 'plans/table one.toml'"
    assert default_folder(plan) == Path("runs/table one")
    assert default_folder(BenchmarkPlan()) == Path("runs/digits")


def test_an_empty_plan_file_is_the_default_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("all.toml").touch()
    assert read_plan("all.toml") == BenchmarkPlan(source="all.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eps = ", "plan.toml: a plan must be written in TOML: "),
        ("epochs = 3", "plan.toml: `epochs` is unknown: a key must be one of title, problem, "),
        ('seeds = "0"', "plan.toml: `seeds` must be whole numbers from 0 to 2**31 - 1, such as 0,1,2, got '0'"),
        ("seeds = [0, 1.5]", "plan.toml: `seeds` must be whole numbers from 0 to 2**31 - 1, such as 0,1,2, got [0, 1.5]"),
        ("nb_epochs = true", "plan.toml: `nb_epochs` must be a whole number of at least 1, got True"),
        ('eps = "8/0"', "plan.toml: `eps` must be a number, or a fraction such as \"8/255\", got '8/0'"),
        ('eps = "much"', "plan.toml: `eps` must be a number, or a fraction such as \"8/255\", got 'much'"),
        ('problem = "imagenet"', "plan.toml: `problem` must be one of 'digits', 'mnist', 'cifar10', "),
        ('network = "huge"', "plan.toml: `network` must be one of 'small', 'mlp', got 'huge'"),
        ('battery = "tank"', "plan.toml: `battery` must be one of "),
        ('defences = ["magic"]', "plan.toml: `defences` must be one of "),
        ('frameworks = ["jax"]', "plan.toml: `frameworks` must be one of 'pytorch', 'tensorflow', got 'jax'"),
        ('variants = "none"', "plan.toml: `variants` must be tables [[variants]], got 'none'"),
        ('[[variants]]\nname = "a"', "plan.toml: `variants[0].defence` must be the name of a defence, got nothing"),
        ('[[variants]]\nbeta = 1', "plan.toml: `variants[0].beta` is unknown: a key must be one of name, defence, "),
        ('[[variants]]\nname = "a"\ndefence = "natural"', "plan.toml: `variants[0].defence` must be one of 'uniform_noise', "),
        ("[[variants]]\nname = 1", "plan.toml: `variants[0].name` must be a string, got 1"),
        ("[[variants]]\noptions = { beta = 0 }", "plan.toml: `variants[0].options` is no longer a key: hyperparameters belong"),
        ("[[variants]]\nmeasure = { beta = 0.0 }", "`variants[0].measure.type` must be one of 'interval', 'linear', "),
        ('[[variants]]\nmeasure = { type = "coding", k = 1 }', "`variants[0].measure.k` is unknown: a key must be one of "),
        ('[[variants]]\nmeasure = { type = "interval", k = 2 }', "`variants[0].measure.k` must be a number in [0, 1], got 2"),
    ],
)  # fmt: skip
def test_bad_plan_files_are_refused_by_file_key_wish_and_value(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_plan(file)


def test_values_of_a_plan_file_are_refused_with_its_name_before_anything_is_written(world: World, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    for text, message in [
        ("eps = 8", "plan.toml: `eps` must not exceed the range"),
        ("n_examples = 21", "plan.toml: `n_examples` must be at most the 20 test points, got 21"),
        ("seeds = [-1]", "plan.toml: `seeds` must be whole numbers from 0"),
        (
            '[[variants]]\nname = "a"\ndefence = "entropic"\nmeasure = { type = "interval", eps_factor = 10 }',
            "plan.toml: `variants[0].measure`, of 'a': `eps_factor` takes `eps` too far",
        ),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            world.run(tmp_path / "out", read_plan(file))
    assert world.trained == [] and not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="`plan` must be a TOML file"):
        read_plan(tmp_path / "none.toml")


def test_values_of_a_plan_file_can_be_set_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.toml").write_text(WHOLE)
    asked = ("eps=4/255", "seeds=[7]", "variants.0.measure.beta=0.5", "variants.1.nb_epochs=9", "title=Mine", "battery = full")
    plan = read_plan("plan.toml", asked)
    assert (plan.eps, plan.seeds, plan.title, plan.battery) == (4 / 255, (7,), "Mine", "full")
    assert plan.variants[0].measure == Interval(beta=0.5, layers="dense") and plan.variants[1].nb_epochs == 9
    words = resolved(plan).command.split(" --set ")
    assert words[0] == "art-entropic benchmark --plan plan.toml" and words[3] == "variants.0.measure.beta=0.5"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eps", "`set` must be KEY=VALUE such as beta=0.1 or schedule.ramp=0.2, got 'eps'"),
        ("epochs=3", "plan.toml: `epochs` is unknown"),
        ("variants.7.nb_epochs=3", "a position that exists, got 'variants.7.nb_epochs=3': list index out of range"),
        ("variants.first.nb_epochs=3", "a position that exists, got 'variants.first.nb_epochs=3': "),
        ("eps.deep=3", "a position that exists, got 'eps.deep=3': "),
        ("nb_epochs=many", "`nb_epochs` must be a whole number of at least 1, got 'many'"),
    ],
)
def test_overrides_that_lead_nowhere_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.toml").write_text(WHOLE)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_plan("plan.toml", [override])


PLANS = sorted((Path(__file__).parents[2] / "benchmarks" / "plans").glob("*.toml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_published_plan_can_start(path: Path) -> None:
    plan = read_plan(path)
    assert plan.title
    settings = resolved(plan)
    assert len({job.training_key for job in plan_jobs(settings, "feed")}) > 1


def test_there_are_published_plans() -> None:
    assert {"ablation", "digits", "mnist-0.3"} <= {path.stem for path in PLANS}
