"""Scorers by name: functions that compare the model's prediction with the right answer."""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from malora_jax.data.examples import Example
from malora_jax.data.number_extraction import final_number


def exact_match(prediction: str, example: Example) -> float:
    r"""Return 1.0 if the prediction equals the answer, ignoring white space around both, else 0.0.

    For example::

        exact_match(' 4\n', Example('What is 2 + 2?', '4', {}))  # 1.0
    """
    return float(prediction.strip() == example.answer.strip())


def choice_match(prediction: str, example: Example) -> float:
    """Return 1.0 if prediction and answer begin with the same word, else 0.0.

    Letter case is ignored, and so are all characters but letters and digits: 'B', '(b)' and 'B. Wet
    palms' are the same choice, and so are 'Yes' and 'yes, because'. This scorer does not suit
    numbers and code: the first words of '-3.5' and 'C++' are '3' and 'C'.
    """
    right = _first_word(example.answer)
    return float(right != '' and _first_word(prediction) == right)


def number_match(prediction: str, example: Example) -> float:
    """Return 1.0 if prediction and answer end in the same number, else 0.0.

    This is the scorer of GSM8K and MGSM; `final_number` finds the number. The language is
    `metadata['language']`, by default 'en'.

    Raises:
        UserError: The language is not one of MGSM's.
    """
    language = example.metadata.get('language', 'en')
    predicted = final_number(prediction, language)
    right = (final_number(answer, language) for answer in _answers(example))
    return float(predicted is not None and predicted in right)


def letter_match(prediction: str, example: Example) -> float:
    """Return 1.0 if prediction and answer have the same first option letter, else 0.0.

    This scorer is for questions whose options are labeled (A), (B), …. An option letter is

    - any letter in parentheses: '(B)', '(b) wet palms', 'Surely (B)';
    - a capital letter after 'answer is', 'option' or 'choice': 'The answer is A because …';
    - a capital letter at the very start or after 'Answer:': 'B', 'B. Wet palms', 'Answer: B'. Here
      A and I may be words, so they only count if no word follows on the line: 'A.' but not 'A dog'.

    UltraEval, OpenBMB's evaluation toolkit, is stricter: the prediction must begin with '(B)'.
    """
    predicted = _option_letter(prediction)
    right = (_option_letter(answer) for answer in _answers(example))
    return float(predicted is not None and predicted in right)


def label_match(prediction: str, example: Example) -> float:
    """Return 1.0 if the first label in the prediction is the right one, else 0.0.

    This scorer is for classes such as positive, neutral and negative, which are
    `metadata['options']`. Labels must be whole words, in any letter case: the label of 'Not
    negative but neutral' is negative, and 'negatively' contains no label. If two labels begin at
    the same place, the longer one counts.
    """
    labels = sorted((option.strip() for option in example.metadata['options']), key=len)
    either = '|'.join(map(re.escape, reversed(labels)))
    predicted = re.search(rf'(?<!\w)(?:{either})(?!\w)', prediction, re.IGNORECASE)
    right = (answer.strip().casefold() for answer in _answers(example))
    return float(predicted is not None and predicted[0].casefold() in right)


def rouge_l(prediction: str, example: Example) -> float:
    """Return the ROUGE-L F-measure (Lin 2004, β = 1), the maximum over the right answers.

    It is computed by `rouge-score` with a tokenization of our own: words are runs of letters and
    digits of any alphabet, in lower case and without stemming. Chinese and Japanese have no spaces
    between words, so each character is a word. (The package's own tokenizer keeps only a-z and 0-9,
    which gives the same words for English.) Other implementations differ, on E2E by about a point:
    UltraEval is case-sensitive and counts punctuation marks as words; the E2E challenge uses
    β = 1.2 and combines the maximum precision and the maximum recall over all references.
    """
    return float(_rouge().score_multi(_answers(example), prediction)['rougeL'].fmeasure)


# Scorers that a task from the user's files may name. `label_match` is missing because it needs
# options, which file tasks do not have.
SCORERS: dict[str, Callable[[str, Example], float]] = {
    'exact_match': exact_match,
    'choice': choice_match,
    'letter': letter_match,
    'number': number_match,
    'rouge_l': rouge_l,
}


def _answers(example: Example) -> Sequence[str]:
    return example.metadata.get('answers', (example.answer,))


def _first_word(text: str) -> str:
    start = itertools.dropwhile(lambda character: not character.isalnum(), text)
    return ''.join(itertools.takewhile(_is_of_a_word, start)).casefold()


def _is_of_a_word(character: str) -> bool:
    """Return whether a character is a letter, a digit or a mark, such as a Hindi vowel sign."""
    return unicodedata.category(character)[0] in 'LNM'


# One Chinese or Japanese character, or a run of other letters and digits.
_WORD = re.compile(r'[\u3040-\u30ff\u3400-\u9fff]|(?:(?![\u3040-\u30ff\u3400-\u9fff_])\w)+')
_OPTION_LETTER = re.compile(
    r"""
    (?<!\w) \( \s* ([A-Za-z]) \s* \)
    | \b (?i:answer\s+is|option|choice) \s \W*+ ([A-Z]) (?![\w'’-])
    | (?: \A | \b (?i:answer|option|choice) \b (?:\s+is)? ) \W*+
      ([B-HJ-Z] (?![\w'’-]) | [AI] (?![\w'’-] | [^\S\n]+ \w))
    """,
    re.VERBOSE,
)


def _option_letter(text: str) -> str | None:
    match = _OPTION_LETTER.search(text)
    return match[match.lastindex or 0].upper() if match else None


@functools.cache
def _rouge() -> Any:
    # Imported here because it imports nltk, which takes a second.
    from rouge_score import rouge_scorer, tokenizers

    class WordTokenizer(tokenizers.Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            return _WORD.findall(text.lower())

    return rouge_scorer.RougeScorer(['rougeL'], tokenizer=WordTokenizer())
