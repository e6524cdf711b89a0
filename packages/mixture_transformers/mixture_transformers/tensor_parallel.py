"""Tensor parallel plan of a model with routed mixtures."""

from collections.abc import Mapping
from typing import Any


def mixture_plan(plan: Mapping[str, str], mixture: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the tensor parallel plan of a model with mixtures.

    A column-wise linear layer has all inputs on each device and some of the outputs: its base and
    up-projections are split, while each device computes all logits and activations of the experts.
    A row-wise layer has some of the inputs on each device: its base, down-projections and router
    are split, and their sums over devices are complete before the softmax and the gates.

    Args:
        plan: Styles by pattern of module names, for the model without mixtures.
        mixture: Block `mixture` of config.json; None for a model without mixtures.
    """
    targets = mixture['targets'] if mixture else ()
    parts = {'colwise': ('base', 'up'), 'rowwise': ('base', 'down', 'router')}
    adapted: dict[str, str] = {}
    for pattern, style in plan.items():
        if pattern.rpartition('.')[2] in targets:
            adapted |= {f'{pattern}.{part}': style for part in parts[style]}
        else:
            adapted[pattern] = style
    return adapted
