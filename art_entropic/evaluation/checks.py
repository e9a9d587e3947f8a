"""Sanity checks of an evaluation: symptoms of attacks that fail for another reason than robustness.

After Carlini et al. (arXiv 1902.06705), Tramer et al. (arXiv 2002.08347) and Pintor et al. (arXiv 2106.09947). A check can show
that something is wrong; none can show that all is well."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from art_entropic._validate import check_logits, largest_distance
from art_entropic.evaluation.attacks import ATTACKS, CannotRunError
from art_entropic.evaluation.attempt import Attempt
from art_entropic.evaluation.case import Case
from art_entropic.evaluation.deciding import Finding, above, more_often, share_above, stronger
from art_entropic.evaluation.planted import Plantation
from art_entropic.evaluation.tally import Tally
from art_entropic.evaluation.target import Ball, Target, numpy_seeded, within_ball
from art_entropic.guards import change_in_company
from art_entropic.ops import Array
from art_entropic.records import Accuracy, CheckOutcome, CheckStatus

# Raised with every change of what a check decides, so that old verdicts are not taken for new ones.
CHECKS_REVISION = 1
# A check looks at so many points, no more.
CHECKED_POINTS = 200
# Where many steps would only confirm that all is well, a check begins with so many: any, or the nearest to falling.
FIRST_LOOK = 20
NEAREST = 10
RANDOM_POINTS = 100
TOLERATED = 0.01
TOLERATED_FLAT = 0.05
TOLERATED_MISSES = 0.05
PLANTED_POINTS = 20


@dataclass(eq=False)
class CheckContext:
    """What the checks look at: points that the classifier gets right without an attack.

    Attributes:
        standing: bool (n,), those that survived the battery.
        certified: bool (n,), those that no perturbation of the ball can break; no check attacks them there.
        attacks: names of the battery's attacks.
        known: by attack, what it has already done to these points with this seed; it does it to no point again.
        battery: what each attack of the battery did, to all points and with all seeds, as far as that is known.
    """

    target: Target
    x: Array
    y: Array
    standing: Array
    certified: Array
    ball: Ball
    seed: int
    attacks: Sequence[str]
    known: Mapping[str, Tally] = field(default_factory=dict)
    battery: Mapping[str, Tally] = field(default_factory=dict)
    _tallies: dict[tuple[str, float], Tally] = field(default_factory=dict)
    _own: list[Tally] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        case: Case,
        survived: Array,
        certified: Array | None,
        seed: int,
        attacks: Sequence[str],
        *,
        known: Mapping[str, Tally] | None = None,
        battery: Mapping[str, Tally] | None = None,
    ) -> CheckContext:
        """The first points of an evaluation that are right; the arrays and tallies given are of all points."""
        (ball,), chosen = case.balls, checked_points(case)
        return cls(
            case.target,
            case.x[chosen],
            case.y[chosen],
            survived[chosen],
            np.zeros(len(chosen), dtype=bool) if certified is None else certified[chosen],
            ball,
            seed,
            attacks,
            {name: tally.of(chosen) for name, tally in (known or {}).items()},
            battery or {},
        )

    def attack(self, name: str, points: Array, ball: Ball | None = None) -> Tally:
        """The tally of an attack on all points, in which these have met it or have a certificate.

        Raises:
            CannotRunError: the attack has nothing to work with here, be there a point to attack or not.
            RuntimeError: a round failed.
        """
        ball = ball or self.ball
        if (name, ball.eps) not in self._tallies:
            Attempt(name, self.target, self.x, self.y, ball, self.seed).check()
            known = self.known.get(name) if ball == self.ball else None
            self._tallies[name, ball.eps] = Tally.on(self.x) if known is None else known
        tally = self._tallies[name, ball.eps]
        proved = self.certified if ball.eps <= self.ball.eps else np.zeros_like(self.certified)
        left = points[~(tally.attacked | proved)[points]]
        if len(left):
            part = Attempt(name, self.target, self.x[left], self.y[left], ball, self.seed).run_whole()
            tally.add(left, part)
            self._own.append(part)
        return tally

    def broken(self, name: str, points: Array, ball: Ball | None = None) -> Array:
        """Which of these points fall to an attack, bool (len(points),)."""
        return np.asarray(self.attack(name, points, ball).broken[points])

    def standing_after(self, *attacks: str, ball: Ball | None = None) -> Array:
        """Indices of the points that survive attacks, each on what those before it left."""
        points = self.points
        for name in attacks:
            points = points[~self.broken(name, points, ball)]
        return points

    @property
    def points(self) -> Array:
        """Indices of all."""
        return np.arange(len(self.x))

    @property
    def open(self) -> Array:
        """Indices of those without a certificate."""
        return np.flatnonzero(~self.certified)

    def known_first(self, name: str, points: Array, ball: Ball | None = None) -> tuple[Array, int]:
        """These points, those first that have met the attack, and how many these are."""
        met = self.attack(name, points[:0], ball).attacked[points]
        return np.concatenate([points[met], points[~met]]), int(met.sum())

    @property
    def missed(self) -> Array:
        """Indices of those that the gradients leave and no certificate protects."""
        return np.intersect1d(self.standing_after(*WHITE_BOX), self.open)

    @property
    def part(self) -> int:
        """How many points are looked at together."""
        return self.target.batch_size

    @property
    def tallies(self) -> Sequence[Tally]:
        """Of all attacks that keep to a ball, the battery's and those of the checks so far."""
        return [*(tally for attack, tally in self.battery.items() if not ATTACKS[attack].seeks_nearest), *self._own]

    @property
    def whole_range(self) -> Ball:
        """A ball that holds every input."""
        clip_values = self.target.classifier.clip_values
        if clip_values is None:
            raise CannotRunError("`classifier` must have clip_values for there to be a largest perturbation, got None")
        return Ball(largest_distance(clip_values, self.x.shape[1:], self.ball.norm), self.ball.norm)


def checked_points(case: Case) -> Array:
    """Indices of the points that the checks look at."""
    return np.flatnonzero(case.right)[:CHECKED_POINTS]


WHITE_BOX = ("pgd_ce", "pgd_margin")


def _deterministic(context: CheckContext) -> Finding:
    one, two = context.target.logits(context.x), context.target.logits(context.x)
    scale = float(np.max(np.abs(one)))
    again = float(np.max(np.abs(one - two))) / max(scale, 1e-30)
    return above(max(again, change_in_company(context.target.backend, context.x)), 1e-5, len(context.x))


def _logits(context: CheckContext) -> Finding:
    try:
        check_logits(context.target.logits(context.x), context.target.nb_classes)
    except ValueError:
        return Finding(True, 1.0, 0.0, len(context.x))
    return Finding(False, 0.0, 0.0, len(context.x))


def _gradients(context: CheckContext) -> Finding:
    context.standing_after(*WHITE_BOX)
    # Where a certificate holds no gradient is needed, be it known from the battery or not.
    nothing, n = context.points[:0], len(context.open)
    tallies = [context.attack(name, nothing).of(context.open) for name in WHITE_BOX]
    at_start = max(int(tally.flat_at_start.sum()) for tally in tallies)
    # Gradients of one point hang together: a share of them counts as that share of the points.
    along = max(float((one.flat + one.not_finite).sum() / max(1, one.gradients.sum())) for one in tallies)
    return more_often(max(at_start, round(along * n)), n, TOLERATED_FLAT)


def _weaker(context: CheckContext, weak: str, strong: Array, ball: Ball | None = None) -> Finding:
    """Whether an attack breaks more than a stronger one, of which it is known which points it breaks."""
    contested, known = context.known_first(weak, np.flatnonzero(~strong & ~context.certified), ball)
    return stronger(
        len(context.x),
        contested,
        lambda points: context.broken(weak, points, ball),
        np.flatnonzero(strong),
        lambda points: ~context.broken(weak, points, ball),
        part=context.part,
        known=known,
    )


def _one_step(context: CheckContext) -> Finding:
    return _weaker(context, "fgsm", context.broken("pgd_ce", context.points))


def _black_box(context: CheckContext) -> Finding:
    return _weaker(context, "square", ~np.isin(context.points, context.standing_after(*WHITE_BOX)))


def _unbounded(context: CheckContext) -> Finding:
    # With restarts: a single run of few steps that wide may miss a point by chance.
    standing = context.standing_after(*WHITE_BOX, "pgd_restarts", ball=context.whole_range)
    return above(len(standing) / len(context.x), 0.0, len(context.x))


def _random(context: CheckContext) -> Finding:
    rng = np.random.default_rng(context.seed)
    return share_above(
        len(context.x),
        context.missed,
        lambda points: _broken_at_random(context, points, rng),
        TOLERATED,
        part=context.part,
    )


def _broken_at_random(context: CheckContext, points: Array, rng: np.random.Generator) -> Array:
    clip_values = context.target.classifier.clip_values
    broken = np.zeros(len(points), dtype=bool)
    for number in range(RANDOM_POINTS):
        left = np.flatnonzero(~broken)
        x, y = context.x[points[left]], context.y[points[left]]
        candidates = x + _random_direction(rng, x.shape, context.ball, at_the_edge=number % 2 == 0)
        if clip_values is not None:
            candidates = np.clip(candidates, *clip_values)
        candidates = candidates.astype(np.float32)
        broken[left] = within_ball(x, candidates, context.ball, clip_values) & (context.target.predict(candidates) != y)
    return broken


def _random_direction(rng: np.random.Generator, shape: tuple[int, ...], ball: Ball, *, at_the_edge: bool) -> Array:
    if math.isinf(ball.norm):
        return ball.eps * (rng.choice([-1.0, 1.0], shape) if at_the_edge else rng.uniform(-1, 1, shape))
    direction = rng.normal(size=shape) if ball.norm == 2 else rng.laplace(size=shape)
    size = np.linalg.norm(direction.reshape(len(direction), -1), ord=ball.norm, axis=1)
    reach = ball.eps * (1.0 if at_the_edge else rng.uniform())
    return np.asarray(direction * (reach / size).reshape(-1, *[1] * (len(shape) - 1)))


def _monotone(context: CheckContext) -> Finding:
    half, twice = (Ball(factor * context.ball.eps, context.ball.norm) for factor in (0.5, 2.0))
    broken = context.broken("pgd_margin", context.points)
    steps = [_weaker(context, "pgd_margin", broken, half)]
    if twice.eps <= context.whole_range.eps:
        larger = stronger(
            len(context.x),
            np.flatnonzero(broken),
            lambda points: ~context.broken("pgd_margin", points, twice),
            np.flatnonzero(~broken),
            lambda points: context.broken("pgd_margin", points, twice),
            part=context.part,
        )
        steps.append(larger)
    return max(steps, key=lambda step: (step.suspicious, step.value))


def _more_steps(context: CheckContext) -> Finding:
    if not context.standing.any():
        raise CannotRunError("no point is left standing")
    suspects = np.flatnonzero(context.standing & ~context.certified)
    nearest = suspects[np.argsort(_margins(context, suspects), kind="stable")]
    ordered, known = context.known_first("apgd_long", nearest)
    return share_above(
        len(context.x),
        ordered,
        lambda points: context.broken("apgd_long", points),
        TOLERATED,
        part=context.part,
        known=known,
        first_look=NEAREST,
    )


def _margins(context: CheckContext, points: Array) -> Array:
    """z_y - max_{i != y} z_i of the clean points."""
    logits = np.array(context.target.logits(context.x[points]), np.float64)
    rows, y = np.arange(len(points)), context.y[points]
    right = logits[rows, y].copy()
    logits[rows, y] = -np.inf
    return np.asarray(right - logits.max(axis=1, initial=-np.inf))


def _transfer(context: CheckContext) -> Finding:
    # Against PGD, not against the battery, which may have tried the same examples.
    missed, known = context.known_first("transfer", context.missed)
    return share_above(
        len(context.x),
        missed,
        lambda points: context.broken("transfer", points),
        TOLERATED,
        part=context.part,
        known=known,
    )


def _path(context: CheckContext) -> Finding:
    fell = np.flatnonzero(context.broken("apgd_ce", context.points))
    return share_above(
        len(context.x),
        fell,
        lambda points: _stands_at_the_end(context, points),
        TOLERATED_FLAT,
        part=context.part,
        first_look=FIRST_LOOK,
    )


def _stands_at_the_end(context: CheckContext, points: Array) -> Array:
    """Which points survive APGD as ART runs it, whose last step alone counts."""
    target, ball, x, y = context.target, context.ball, context.x[points], context.y[points]
    (one,) = ATTACKS["apgd_ce"].rounds(target, ball)
    with target.untouched(context.seed), numpy_seeded(context.seed):
        attack = ATTACKS["apgd_ce"].build(target.twin(one.name, one.objective), ball, target.batch_size)
        end = np.asarray(attack.generate(x.copy(), y=np.eye(target.nb_classes, dtype=np.float32)[y]), np.float32)
    return np.asarray(~within_ball(x, end, ball, target.classifier.clip_values) | (target.predict(end) == y))


def _planted(context: CheckContext) -> Finding:
    planted = Plantation.of(context.target, context.x[:PLANTED_POINTS], context.ball, context.attacks, context.seed)
    return share_above(
        planted.n,
        np.arange(planted.n),
        lambda points: np.array([not planted.is_found(place) for place in points]),
        TOLERATED_MISSES,
        part=1,
    )


def _bounds(context: CheckContext) -> Finding:
    outside = sum(int(tally.out_of_bounds.sum()) for tally in context.tallies)
    n = sum(int(tally.attacked.sum()) for tally in context.tallies)
    return above(outside / max(1, n), 0.0, n)


@dataclass(frozen=True)
class Check:
    """One row of CHECKS.

    Attributes:
        meaning: what its value is, and what a large one says.
        seen: what was seen where it is suspicious, a format of `value`, of `share`, the same in percent, and of `n`.
        advice: what to do then.
        alarm: the status of a suspicious finding; "fail" where the evaluation itself went wrong.
    """

    title: str
    run: Callable[[CheckContext], Finding]
    meaning: str
    seen: str
    advice: str
    alarm: CheckStatus = "flag"


_MASKING = "do not trust the gradients: look at what the forward pass does, and attack a differentiable stand-in for it"
CHECKS: dict[str, Check] = {
    "deterministic": Check(
        "The network answers twice the same",
        _deterministic,
        "largest change of a logit when the same point is asked again, or by itself, relative to the largest logit; randomness "
        "fools attacks, and where a point's answer depends on its batch no point has a robustness of its own",
        "the same input changes a logit by {value:.2g} of the largest when it is asked again, or by itself",
        "attack the expectation over the randomness, with many draws for each gradient; "
        "make the network judge each point by itself",
    ),
    "logits": Check(
        "The network returns logits",
        _logits,
        "1 where it returns probabilities or values that are not finite, which starve an attack of gradients, else 0",
        "the network returns probabilities, or values that are not finite, in place of logits",
        "remove the final softmax",
    ),
    "gradients": Check(
        "Gradients are there",
        _gradients,
        "share of gradients that are zero in every feature or not finite, at the start or along the way, the larger one",
        "{share} of the gradients are zero or not finite",
        "attack a loss that does not saturate, and look for quantisation, saturation or a scale of the logits; " + _MASKING,
    ),
    "one_step": Check(
        "Many steps beat one",
        _one_step,
        "share of points by which one step breaks more than twenty; a sane loss surface has it the other way round",
        "one step of FGSM breaks more points than twenty of PGD, by {share} of {n}",
        _MASKING,
    ),
    "black_box": Check(
        "Gradients beat queries",
        _black_box,
        "share of points by which Square, which sees no gradient, breaks more than PGD; then gradients mislead",
        "Square, which sees no gradient, breaks more points than PGD, by {share} of {n}",
        _MASKING,
    ),
    "unbounded": Check(
        "Without a bound nothing stands",
        _unbounded,
        "share of points that survive PGD although it may change every input into any other; such an attack must succeed",
        "PGD without a bound leaves {share} of {n} points standing",
        _MASKING,
    ),
    "random": Check(
        "Chance finds nothing that gradients miss",
        _random,
        f"share of points that one of {RANDOM_POINTS} random perturbations breaks and PGD does not",
        "{share} of {n} points fall to random noise and not to PGD",
        _MASKING,
    ),
    "monotone": Check(
        "More room breaks more",
        _monotone,
        "share of points by which PGD breaks more in a smaller ball than in one of twice its radius, each attacked on its own",
        "PGD breaks more points in a ball than in one of twice its radius, by {share} of {n}",
        "give the attack more steps and restarts, or a step that suits the radius; " + _MASKING,
    ),
    "more_steps": Check(
        "More steps break no more",
        _more_steps,
        "share of points that survive the battery and fall to five times the steps; then the battery had not converged",
        "{share} of {n} points survive the battery and fall to five times the steps",
        "report the longer attack's number, and lengthen it until it no longer falls",
    ),
    "transfer": Check(
        "Nothing transfers that was not found here",
        _transfer,
        "share of points that survive PGD here and fall to an example that was crafted on another network",
        "{share} of {n} points survive PGD and fall to examples crafted on another network",
        _MASKING,
    ),
    "path": Check(
        "What is found is kept",
        _path,
        "share of points that fall on the way of APGD and stand again at its end, where ART looks; here the way counts",
        "{share} of {n} points fall on the way of APGD and are right again at its last step",
        "use no attack that looks at its last step only: it would report these points as robust",
    ),
    "planted": Check(
        "Planted adversarial examples are found",
        _planted,
        "share of adversarial examples that the battery misses although they were put there, behind the network's own features",
        "the battery misses {share} of {n} adversarial examples that were planted",
        "take a stronger battery: this one cannot be believed when it finds nothing",
        alarm="fail",
    ),
    "bounds": Check(
        "Attacks keep to their budget",
        _bounds,
        "share of what the attacks returned that lies outside the ball or the clip range, or is not finite; it never counted",
        "{share} of what the attacks returned lies outside the ball or the clip range, or is not finite",
        "look for the attack at fault; the points it lost may not be robust",
        alarm="fail",
    ),
}


def run_checks(context: CheckContext, progress: Callable[[str], object] | None = None) -> list[CheckOutcome]:
    """All of CHECKS, in order. One that cannot run is skipped, and says why."""
    outcomes = []
    for number, (name, check) in enumerate(CHECKS.items(), start=1):
        if progress is not None:
            progress(f"check {number} of {len(CHECKS)}: {check.title}")
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


def alarms_of(checks: Iterable[CheckOutcome]) -> list[CheckOutcome]:
    """Those that call for attention."""
    return [check for check in checks if check.status in ("flag", "fail")]


def seen(check: CheckOutcome) -> str:
    """What a suspicious check saw, in the field's terms; the title of one that broke or that this version does not know."""
    if check.value is None or check.check not in CHECKS:
        return f"{check.title}: {check.reason}" if check.reason else f"not so: {check.title}"
    return CHECKS[check.check].seen.format(value=check.value, share=_share(check.value), n=check.n)


def _share(value: float) -> str:
    """In percent, small ones with the digits that tell them from nothing."""
    return f"{100 * value:.1f} %" if value >= 0.001 else f"{100 * value:.1g} %"


def retold(words: str, checks: Iterable[CheckOutcome]) -> str:
    """A verdict of a record, or a text that holds one, in the words of today.

    Older records give the titles of checks, "not so: ...", where this gives what was seen, and "no symptom found in 12 of 13
    checks", which reads as though the thirteenth had found one.
    """
    for check in alarms_of(checks):
        words = words.replace(f"not so: {check.title}", seen(check))
    return re.sub(r"no symptom found in (\d+) of (\d+) checks", lambda old: _clear(int(old[1]), int(old[2])), words)


def _clear(passed: int, total: int) -> str:
    noun = "check" if passed == 1 else "checks"
    checks = f"all {total} checks passed" if passed == total else f"{passed} {noun} passed, {total - passed} skipped"
    return f"no symptom found ({checks})"


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
    suspicion = "; ".join(seen(check) for check in alarms_of(checks))
    if failed:
        suspicion = "; ".join(filter(None, [suspicion, *(f"did not run: {name}" for name in failed)]))
    if robust.high < 1 / nb_classes:
        worst = max(broken_by, key=lambda name: broken_by[name]) if any(broken_by.values()) else "its own errors"
        return f"broken by {worst}" + (f" (and suspicious: {suspicion})" if suspicion else "")
    if suspicion:
        return f"suspicious: {suspicion}"
    passed = sum(check.status == "pass" for check in checks)
    if checks and not passed:
        return f"nothing could be checked: {checks[0].reason}"
    return _clear(passed, len(CHECKS)) if checks else "no checks were run"
