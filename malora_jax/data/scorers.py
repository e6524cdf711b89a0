"""Scorers by name: how what the model says is compared with the right answer."""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from malora_jax.data.examples import Example
from malora_jax.data.numbers import final_number


def exact_match(prediction: str, example: Example) -> float:
    """1.0 if the prediction is the answer, apart from white space around it, else 0.0."""
    return float(prediction.strip() == example.answer.strip())


def choice(prediction: str, example: Example) -> float:
    """1.0 if prediction and answer begin with the same word, else 0.0.

    Case and what is no letter or digit do not count: 'B', '(b)' and 'B. Wet palms' are one choice,
    and so are 'Yes' and 'yes, because'. Not for numbers and code: of '-3.5' and 'C++', the first
    words are '3' and 'C'.
    """
    right = _first_word(example.answer)
    return float(right != '' and _first_word(prediction) == right)


def number(prediction: str, example: Example) -> float:
    """1.0 if prediction and answer end in the same number, else 0.0.

    For GSM8K and MGSM; `numbers.final_number` says which number is meant. The language is
    `metadata['language']`, by default 'en'.
    """
    language = example.metadata.get('language', 'en')
    said = final_number(prediction, language)
    right = (final_number(answer, language) for answer in _answers(example))
    return float(said is not None and said in right)


def letter(prediction: str, example: Example) -> float:
    """1.0 if the first option letter of prediction and answer is the same, else 0.0.

    For questions whose options are headed (A), (B), …. An option letter is

    - any letter in parentheses: '(B)', '(b) wet palms', 'Surely (B)';
    - a capital after 'answer is', 'option' or 'choice': 'The answer is A because …';
    - a capital at the very start or after 'Answer:': 'B', 'B. Wet palms', 'Answer: B'. There A and
      I may be words and only count with no word after them on the line: 'A.' but not 'A dog'.

    UltraEval is stricter: the prediction has to begin with '(B)'.
    """
    said = _option_letter(prediction)
    right = (_option_letter(answer) for answer in _answers(example))
    return float(said is not None and said in right)


def label(prediction: str, example: Example) -> float:
    """1.0 if the first of the labels that the prediction holds is the right one, else 0.0.

    For classes such as positive, neutral and negative, given as `metadata['options']`. Labels count
    as whole words in any case: of 'Not negative but neutral', the label is negative; 'negatively'
    holds none. Of two labels that begin at the same place, the longer one counts.
    """
    labels = sorted((option.strip() for option in example.metadata['options']), key=len)
    either = '|'.join(map(re.escape, reversed(labels)))
    said = re.search(rf'(?<!\w)(?:{either})(?!\w)', prediction, re.IGNORECASE)
    right = (answer.strip().casefold() for answer in _answers(example))
    return float(said is not None and said[0].casefold() in right)


def rouge_l(prediction: str, example: Example) -> float:
    """ROUGE-L F-measure (Lin 2004, β = 1), the largest over the right answers.

    By `rouge-score`: words are runs of letters and digits of any alphabet in lower case, not
    stemmed; in Chinese and Japanese, which put no spaces between words, single characters. (The
    package's own words are of a-z and 0-9 alone, which is the same in English.) Others count
    differently, on E2E by about a point: for UltraEval case matters and punctuation marks are
    words; the E2E challenge has β = 1.2 and takes the largest precision and the largest recall,
    each over all references.
    """
    return float(_rouge().score_multi(_answers(example), prediction)['rougeL'].fmeasure)


# What a task of the user's own files may name; `label` needs options, which files do not have.
SCORERS: dict[str, Callable[[str, Example], float]] = {
    'exact_match': exact_match,
    'choice': choice,
    'letter': letter,
    'number': number,
    'rouge_l': rouge_l,
}


def _answers(example: Example) -> Sequence[str]:
    return example.metadata.get('answers', (example.answer,))


def _first_word(text: str) -> str:
    start = itertools.dropwhile(lambda character: not character.isalnum(), text)
    return ''.join(itertools.takewhile(_is_of_a_word, start)).casefold()


def _is_of_a_word(character: str) -> bool:
    """Letters, digits, and the marks on them, such as the vowel signs of Hindi and Thai."""
    return unicodedata.category(character)[0] in 'LNM'


# A character of Chinese or Japanese, or a run of other letters and digits.
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
    found = _OPTION_LETTER.search(text)
    return found[found.lastindex or 0].upper() if found else None


@functools.cache
def _rouge() -> Any:
    # Imports nltk, which takes a second.
    from rouge_score import rouge_scorer, tokenizers

    class Words(tokenizers.Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            return _WORD.findall(text.lower())

    return rouge_scorer.RougeScorer(['rougeL'], tokenizer=Words())
