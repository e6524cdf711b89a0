"""Questions with options, answered by the log-probability of each option's text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from malora_jax.data import Example, Template, Tokenizer, encode_completion, encode_prompt
from malora_jax.evaluation.likelihood import Request


class Choice(NamedTuple):
    """The options that a model takes.

    Attributes:
        raw: index of the option with the largest log-probability.
        normalized: index of the one with the largest log-probability per character.
    """

    raw: int
    normalized: int


def option_requests(tokenizer: Tokenizer, template: Template, example: Example) -> list[Request]:
    """Tokens of the prompt and of the continuation, for each option of a question."""
    prompt = encode_prompt(tokenizer, template, example.question)
    return [
        (
            prompt,
            encode_completion(tokenizer, template, dataclasses.replace(example, answer=option)),
        )
        for option in example.metadata['options']
    ]


def choose(log_probabilities: Sequence[float], options: Sequence[str]) -> Choice:
    """What a model takes of some options; the first one among equals.

    The length of an option is that of its text in characters, without the white space around it,
    as in `acc_norm` of the Evaluation Harness.

    Args:
        log_probabilities: of each option's continuation, in nats.
        options: their texts.
    """
    lengths = [len(option.strip()) for option in options]
    per_character = np.asarray(log_probabilities) / lengths
    return Choice(int(np.argmax(log_probabilities)), int(np.argmax(per_character)))


def choice_scores(choice: Choice, metadata: Mapping[str, int]) -> dict[str, float]:
    """1.0 or 0.0 for the option taken, by `accuracy` and `accuracy_normalized`."""
    label = metadata['label']
    return {
        'accuracy': float(choice.raw == label),
        'accuracy_normalized': float(choice.normalized == label),
    }
