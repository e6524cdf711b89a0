"""Multiple-choice questions, answered by the log-probability of each option's text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from malora_jax.data import Example, Template, TokenizerProtocol, encode_completion, encode_prompt
from malora_jax.evaluation.likelihood import LikelihoodRequest


class ChosenOptions(NamedTuple):
    """The model's choice among the options of a question, with and without length normalization.

    Attributes:
        raw: Index of the option with the largest log-probability.
        normalized: Index of the option with the largest log-probability per character.
    """

    raw: int
    normalized: int


def option_requests(
    tokenizer: TokenizerProtocol, template: Template, example: Example
) -> list[LikelihoodRequest]:
    """Return the token ids of the prompt and of the continuation, for each option of a question.

    Args:
        tokenizer: Tokenizer of the model.
        template: Prompt template.
        example: Question whose metadata lists the `options`, and the `prompts` if they differ.
    """
    options = example.metadata['options']
    prompts = example.metadata.get('prompts', [example.question] * len(options))
    return [
        (
            encode_prompt(tokenizer, template, prompt),
            encode_completion(tokenizer, template, dataclasses.replace(example, answer=option)),
        )
        for prompt, option in zip(prompts, options, strict=True)
    ]


def choose(log_probabilities: Sequence[float], options: Sequence[str]) -> ChosenOptions:
    """Choose the option with the largest log-probability, in total and per character.

    If several options are equal, the first one is chosen. The characters of an option are counted
    without the space that separates it from the prompt, as in `acc_norm` of EleutherAI's evaluation
    harness.

    Args:
        log_probabilities: Log-probability of each option's continuation, in nats.
        options: Text of each option.
    """
    lengths = [len(option.removeprefix(' ')) for option in options]
    per_character = np.asarray(log_probabilities) / lengths
    return ChosenOptions(int(np.argmax(log_probabilities)), int(np.argmax(per_character)))


def choice_scores(choice: ChosenOptions, metadata: Mapping[str, int]) -> dict[str, float]:
    """Return the scores `accuracy` and `accuracy_normalized`: 1.0 if right, else 0.0.

    Args:
        choice: Options that the model chose.
        metadata: Metadata of the example; `label` is the index of the right option.
    """
    label = metadata['label']
    return {
        'accuracy': float(choice.raw == label),
        'accuracy_normalized': float(choice.normalized == label),
    }
