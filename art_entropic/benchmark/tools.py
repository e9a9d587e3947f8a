"""What a benchmark works with: data, networks, defences, attacks, a clock."""

from __future__ import annotations

import time
from collections.abc import Mapping

from art_entropic.analysis.profile import information_profile
from art_entropic.backends.registry import backend_for, framework_module, installed_frameworks
from art_entropic.benchmark.defences import DEFENCES, Defence
from art_entropic.benchmark.problems import build_classifier, load_data
from art_entropic.evaluation.curve import security_curve
from art_entropic.evaluation.evaluate import check_evaluation, evaluate
from art_entropic.evaluation.gallery import attacked_examples


class Tools:
    """The real ones. A test hands in a subclass, which stands in for some of them or for all."""

    defences: Mapping[str, Defence] = DEFENCES
    installed_frameworks = staticmethod(installed_frameworks)
    framework_module = staticmethod(framework_module)
    load_data = staticmethod(load_data)
    build_classifier = staticmethod(build_classifier)
    backend_for = staticmethod(backend_for)
    evaluate = staticmethod(evaluate)
    security_curve = staticmethod(security_curve)
    attacked_examples = staticmethod(attacked_examples)
    check_evaluation = staticmethod(check_evaluation)
    information_profile = staticmethod(information_profile)
    clock = staticmethod(time.perf_counter)

    def __reduce__(self) -> str:
        # Pickled by name: another process works with the real ones, and others do not leave the process that made them.
        return "TOOLS"


TOOLS = Tools()
