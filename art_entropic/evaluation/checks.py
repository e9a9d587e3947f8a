"""Sanity checks of an evaluation: symptoms of attacks that fail for another reason than robustness.

After Carlini et al. (arXiv 1902.06705), Tramer et al. (arXiv 2002.08347) and Pintor et al. (arXiv 2106.09947). A check can show
that something is wrong; none can show that all is well."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from art_entropic._validate import check_logits
from art_entropic.evaluation.attacks import ATTACKS, CannotRunError
from art_entropic.evaluation.attempt import Attempt
from art_entropic.evaluation.case import Case
from art_entropic.evaluation.planted import find_planted
from art_entropic.evaluation.tally import Tally
from art_entropic.evaluation.target import Ball, Target, largest_distance, numpy_seeded, within_ball
from art_entropic.ops import Array
from art_entropic.records import Accuracy, CheckOutcome, CheckStatus
from art_entropic.statistics import mcnemar

# A check attacks so many points, no more.
# Raised with every change of what a check finds, so that old verdicts are not taken for new ones.
CHECKS_REVISION = 1
CHECKED_POINTS = 200
RANDOM_POINTS = 100
# A check calls for attention where chance alone would make it do so in less than this share of evaluations.
FALSE_ALARM_RATE = 0.01
TOLERATED = 0.01
TOLERATED_FLAT = 0.05
TOLERATED_MISSES = 0.05
PLANTED_POINTS = 20


class Finding(NamedTuple):
    """What a check saw.

    Where a share is tolerated, a larger one is suspicious if an exact binomial test would see so many by chance in less than
    one of a hundred evaluations: a single point of few does not decide.
    """

    suspicious: bool
    value: float
    threshold: float
    n: int


@dataclass(eq=False)
class CheckContext:
    """What the checks look at: points that the classifier gets right without an attack.

    Attributes:
        standing: bool (n,), those that survived the battery.
        attacks: names of the battery's attacks.
        battery: what each of them did, as far as that is known.
    """

    target: Target
    x: Array
    y: Array
    standing: Array
    ball: Ball
    seed: int
    attacks: Sequence[str]
    battery: Mapping[str, Tally] = field(default_factory=dict)
    _tallies: dict[tuple[str, float], Tally] = field(default_factory=dict)

    @classmethod
    def of(
        cls, case: Case, survived: Array, seed: int, attacks: Sequence[str], battery: Mapping[str, Tally] | None = None
    ) -> CheckContext:
        """The first points of an evaluation that are right; `survived` is of all points, as `battery` is."""
        (ball,), chosen = case.balls, np.flatnonzero(case.right)[:CHECKED_POINTS]
        return cls(case.target, case.x[chosen], case.y[chosen], survived[chosen], ball, seed, attacks, battery or {})

    def run(self, attack: str, ball: Ball | None = None) -> Tally:
        """That attack on all of the points, whoever stands; run once."""
        ball = ball or self.ball
        if (attack, ball.eps) not in self._tallies:
            self._tallies[attack, ball.eps] = Attempt(attack, self.target, self.x, self.y, ball, self.seed).run_whole()
        return self._tallies[attack, ball.eps]

    def broken(self, *attacks: str, ball: Ball | None = None) -> Array:
        return np.asarray(np.any([self.run(attack, ball).broken for attack in attacks], axis=0))

    @property
    def tallies(self) -> Sequence[Tally]:
        """Of all attacks that keep to a ball, the battery's and those of the checks so far."""
        kept = (tally for attack, tally in self.battery.items() if not ATTACKS[attack].seeks_nearest)
        return [*kept, *self._tallies.values()]

    @property
    def whole_range(self) -> Ball:
        """A ball that holds every input."""
        clip_values = self.target.classifier.clip_values
        if clip_values is None:
            raise CannotRunError("`classifier` must have clip_values for there to be a largest perturbation, got None")
        return Ball(largest_distance(clip_values, self.x.shape[1:], self.ball.norm), self.ball.norm)


WHITE_BOX = ("pgd_ce", "pgd_margin")


def _deterministic(context: CheckContext) -> Finding:
    one, two = context.target.logits(context.x), context.target.logits(context.x)
    scale = float(np.max(np.abs(one)))
    return _above(float(np.max(np.abs(one - two))) / max(scale, 1e-30), 1e-5, len(context.x))


def _logits(context: CheckContext) -> Finding:
    try:
        check_logits(context.target.logits(context.x), context.target.nb_classes)
    except ValueError:
        return Finding(True, 1.0, 0.0, len(context.x))
    return Finding(False, 0.0, 0.0, len(context.x))


def _gradients(context: CheckContext) -> Finding:
    tallies = [context.run(name) for name in WHITE_BOX]
    at_start = max(int(tally.flat_at_start.sum()) for tally in tallies)
    # Gradients of one point hang together: a share of them counts as that share of the points.
    along = max(float((one.flat + one.not_finite).sum() / max(1, one.gradients.sum())) for one in tallies)
    return _more_often(max(at_start, round(along * len(context.x))), len(context.x), TOLERATED_FLAT)


def _one_step(context: CheckContext) -> Finding:
    return _stronger(context.run("fgsm").broken, context.run("pgd_ce").broken)


def _black_box(context: CheckContext) -> Finding:
    return _stronger(context.run("square").broken, context.broken(*WHITE_BOX))


def _unbounded(context: CheckContext) -> Finding:
    # With restarts: a single run of few steps that wide may miss a point by chance.
    broken = context.broken(*WHITE_BOX, "pgd_restarts", ball=context.whole_range)
    return _above(float((~broken).mean()), 0.0, len(context.x))


def _random(context: CheckContext) -> Finding:
    missed = ~context.broken(*WHITE_BOX) & _broken_at_random(context)
    return _more_often(int(missed.sum()), len(context.x), TOLERATED)


def _broken_at_random(context: CheckContext) -> Array:
    rng = np.random.default_rng(context.seed)
    clip_values = context.target.classifier.clip_values
    broken = np.zeros(len(context.x), dtype=bool)
    for number in range(RANDOM_POINTS):
        noise = _random_direction(rng, context.x.shape, context.ball, at_the_edge=number % 2 == 0)
        candidates = context.x + noise
        if clip_values is not None:
            candidates = np.clip(candidates, *clip_values)
        candidates = candidates.astype(np.float32)
        valid = within_ball(context.x, candidates, context.ball, clip_values)
        broken |= valid & (context.target.predict(candidates) != context.y)
    return broken


def _random_direction(rng: np.random.Generator, shape: tuple[int, ...], ball: Ball, *, at_the_edge: bool) -> Array:
    if math.isinf(ball.norm):
        return ball.eps * (rng.choice([-1.0, 1.0], shape) if at_the_edge else rng.uniform(-1, 1, shape))
    direction = rng.normal(size=shape) if ball.norm == 2 else rng.laplace(size=shape)
    size = np.linalg.norm(direction.reshape(len(direction), -1), ord=ball.norm, axis=1)
    reach = ball.eps * (1.0 if at_the_edge else rng.uniform())
    return np.asarray(direction * (reach / size).reshape(-1, *[1] * (len(shape) - 1)))


def _monotone(context: CheckContext) -> Finding:
    radii = [factor * context.ball.eps for factor in (0.5, 1.0, 2.0)]
    balls = [Ball(radius, context.ball.norm) for radius in radii if radius <= context.whole_range.eps]
    broken = [context.run("pgd_margin", ball).broken for ball in balls]
    steps = [_stronger(small, large) for small, large in itertools.pairwise(broken)]
    return max(steps, key=lambda step: (step.suspicious, step.value))


def _more_steps(context: CheckContext) -> Finding:
    standing = np.flatnonzero(context.standing)
    if not len(standing):
        raise CannotRunError("no point is left standing")
    x, y = context.x[standing], context.y[standing]
    tally = Attempt("apgd_long", context.target, x, y, context.ball, context.seed).run()
    return _more_often(int(tally.broken.sum()), len(context.x), TOLERATED)


def _transfer(context: CheckContext) -> Finding:
    # Against PGD, not against the battery, which may have tried the same examples.
    missed = context.run("transfer").broken & ~context.broken(*WHITE_BOX)
    return _more_often(int(missed.sum()), len(context.x), TOLERATED)


def _path(context: CheckContext) -> Finding:
    target, ball = context.target, context.ball
    (one,) = ATTACKS["apgd_ce"].rounds(target, ball)
    labels = np.eye(target.nb_classes, dtype=np.float32)[context.y]
    with target.untouched(context.seed), numpy_seeded(context.seed):
        attack = ATTACKS["apgd_ce"].build(target.twin(one.name, one.objective), ball, target.batch_size)
        end = np.asarray(attack.generate(context.x.copy(), y=labels), np.float32)
    at_the_end = within_ball(context.x, end, ball, target.classifier.clip_values) & (target.predict(end) != context.y)
    lost = context.run("apgd_ce").broken & ~at_the_end
    return _more_often(int(lost.sum()), len(context.x), TOLERATED_FLAT)


def _planted(context: CheckContext) -> Finding:
    found = find_planted(context.target, context.x[:PLANTED_POINTS], context.ball, context.attacks, context.seed)
    return _more_often(found.n - found.found, found.n, TOLERATED_MISSES)


def _bounds(context: CheckContext) -> Finding:
    outside = sum(int(tally.out_of_bounds.sum()) for tally in context.tallies)
    n = sum(int(tally.attacked.sum()) for tally in context.tallies)
    return _above(outside / max(1, n), 0.0, n)


def _above(value: float, threshold: float, n: int) -> Finding:
    return Finding(not value <= threshold, value, threshold, n)


def _more_often(count: int, n: int, tolerated: float) -> Finding:
    """Whether a share is above the tolerated one, by more than chance at this n would explain."""
    from scipy.stats import binomtest

    if n == 0:
        return Finding(False, 0.0, tolerated, 0)
    chance = binomtest(count, n, tolerated, alternative="greater").pvalue
    return Finding(bool(chance < FALSE_ALARM_RATE), count / n, tolerated, n)


def _stronger(weak: Array, strong: Array) -> Finding:
    """Whether the attack that ought to be weaker breaks more points; the value is by what share of them."""
    only_weak, only_strong = int((weak & ~strong).sum()), int((strong & ~weak).sum())
    value = (only_weak - only_strong) / len(weak)
    return Finding(value > 0 and mcnemar(only_weak, only_strong) < FALSE_ALARM_RATE, value, 0.0, len(weak))


@dataclass(frozen=True)
class Check:
    """One row of CHECKS.

    Attributes:
        meaning: what its value is, and what a large one says.
        advice: what to do then.
        alarm: the status of a suspicious finding; "fail" where the evaluation itself went wrong.
    """

    title: str
    run: Callable[[CheckContext], Finding]
    meaning: str
    advice: str
    alarm: CheckStatus = "flag"


_MASKING = "do not trust the gradients: look at what the forward pass does, and attack a differentiable stand-in for it"
CHECKS: dict[str, Check] = {
    "deterministic": Check(
        "The network answers twice the same",
        _deterministic,
        "largest change of a logit between two identical questions, relative to the largest logit; randomness fools attacks",
        "attack the expectation over the randomness, with many draws for each gradient",
    ),
    "logits": Check(
        "The network returns logits",
        _logits,
        "1 where it returns probabilities or values that are not finite, which starve an attack of gradients, else 0",
        "remove the final softmax",
    ),
    "gradients": Check(
        "Gradients are there",
        _gradients,
        "share of gradients that are zero in every feature or not finite, at the start or along the way, the larger one",
        "attack a loss that does not saturate, and look for quantisation, saturation or a scale of the logits; " + _MASKING,
    ),
    "one_step": Check(
        "Many steps beat one",
        _one_step,
        "share of points by which one step breaks more than twenty; a sane loss surface has it the other way round",
        _MASKING,
    ),
    "black_box": Check(
        "Gradients beat queries",
        _black_box,
        "share of points by which Square, which sees no gradient, breaks more than PGD; then gradients mislead",
        _MASKING,
    ),
    "unbounded": Check(
        "Without a bound nothing stands",
        _unbounded,
        "share of points that survive PGD although it may change every input into any other; such an attack must succeed",
        _MASKING,
    ),
    "random": Check(
        "Chance finds nothing that gradients miss",
        _random,
        f"share of points that one of {RANDOM_POINTS} random perturbations breaks and PGD does not",
        _MASKING,
    ),
    "monotone": Check(
        "More room breaks more",
        _monotone,
        "share of points by which PGD breaks more in a smaller ball than in one of twice its radius, each attacked on its own",
        "give the attack more steps and restarts, or a step that suits the radius; " + _MASKING,
    ),
    "more_steps": Check(
        "More steps break no more",
        _more_steps,
        "share of points that survive the battery and fall to five times the steps; then the battery had not converged",
        "report the longer attack's number, and lengthen it until it no longer falls",
    ),
    "transfer": Check(
        "Nothing transfers that was not found here",
        _transfer,
        "share of points that survive PGD here and fall to an example that was crafted on another network",
        _MASKING,
    ),
    "path": Check(
        "What is found is kept",
        _path,
        "share of points that fall on the way of APGD and stand again at its end, where ART looks; here the way counts",
        "use no attack that looks at its last step only: it would report these points as robust",
    ),
    "planted": Check(
        "Planted adversarial examples are found",
        _planted,
        "share of adversarial examples that the battery misses although they were put there, behind the network's own features",
        "take a stronger battery: this one cannot be believed when it finds nothing",
        alarm="fail",
    ),
    "bounds": Check(
        "Attacks keep to their budget",
        _bounds,
        "share of what the attacks returned that lies outside the ball or the clip range, or is not finite; it never counted",
        "look for the attack at fault; the points it lost may not be robust",
        alarm="fail",
    ),
}


def run_checks(context: CheckContext, progress: Callable[[str], None] = lambda title: None) -> list[CheckOutcome]:
    """All of CHECKS, in order. One that cannot run is skipped, and says why."""
    outcomes = []
    for name, check in CHECKS.items():
        progress(check.title)
        started = time.perf_counter()
        facts: dict[str, object] = {}
        try:
            if not len(context.x):
                raise CannotRunError("no point is right without an attack")
            finding = check.run(context)
            status: CheckStatus = check.alarm if finding.suspicious else "pass"
            facts = {"value": finding.value, "threshold": finding.threshold, "n": finding.n}
        except CannotRunError as error:
            status, facts = "skipped", {"reason": str(error)}
        except Exception as error:  # recorded: one check that breaks must not hide what the others see, nor pass for harmless
            status, facts = "fail", {"reason": f"{type(error).__name__}: {error}"}
        outcomes.append(
            CheckOutcome(
                check=name,
                title=check.title,
                status=status,
                seconds=time.perf_counter() - started,
                meaning=check.meaning,
                advice=check.advice if status in ("flag", "fail") else "",
                **facts,  # type: ignore[arg-type]
            )
        )
    return outcomes


def verdict(
    robust: Accuracy,
    nb_classes: int,
    broken_by: Mapping[str, int],
    checks: Sequence[CheckOutcome],
    failed: Sequence[str] = (),
) -> str:
    """The words for an evaluation: "broken by ...", "suspicious: ..." or "no symptom found"; never more than that.

    Args:
        robust: accuracy under every attack.
        nb_classes: of the classifier; a robust accuracy surely below 1 / nb_classes is none.
        broken_by: title of an attack -> the points that fell to it.
        checks: of the evaluation; none where they were not run.
        failed: titles of attacks that stopped with an error, which is not the same as breaking nothing.
    """
    alarms = [check for check in checks if check.status in ("flag", "fail")]
    suspicion = "; ".join(f"not so: {check.title}" for check in alarms)
    if failed:
        suspicion = "; ".join(filter(None, [suspicion, *(f"did not run: {name}" for name in failed)]))
    if robust.high < 1 / nb_classes:
        worst = max(broken_by, key=lambda name: broken_by[name]) if any(broken_by.values()) else "its own errors"
        return f"broken by {worst}" + (f" (and suspicious: {suspicion})" if suspicion else "")
    if suspicion:
        return f"suspicious: {suspicion}"
    done = sum(check.status == "pass" for check in checks)
    return f"no symptom found in {done} of {len(CHECKS)} checks" if checks else "no checks were run"
