"""Defaults live in yaml alone: what every yaml that names a network, encoder or policy gives it has no value in code too.

A value in code may stand for what some yaml leaves out; and the kernel's own objects (policies.generate) are mathematics, whose
published constants stand with their formulas. Mutation: give `width` of ResidualMlp a default.
"""

import inspect
from collections import defaultdict
from inspect import Parameter

import yaml
from hydra.utils import get_object

from polyarm.config import CONFIGS

ROOMS = ("polyarm.policies.", "polyarm.encoders.")
KERNEL = "polyarm.policies.generate."


def named(tree):
    """Every node that names something by `_target_`."""
    items = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return [*([tree] if isinstance(tree, dict) and "_target_" in tree else []), *(n for x in items for n in named(x))]


def test_no_default_stands_in_two_places():
    nodes = defaultdict(list)
    for file in sorted(CONFIGS.rglob("*.yaml")):
        for node in named(yaml.safe_load(file.read_text())):
            if node["_target_"].startswith(ROOMS) and not node["_target_"].startswith(KERNEL):
                nodes[node["_target_"]].append(node)
    assert len(nodes) > 15
    twice = [
        f"{target}.{name}"
        for target, given in nodes.items()
        for name, parameter in inspect.signature(get_object(target)).parameters.items()
        if parameter.default is not Parameter.empty and all(name in node for node in given)
    ]
    assert not twice
