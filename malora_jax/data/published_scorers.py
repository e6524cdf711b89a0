"""Scorers that extract an answer exactly as published evaluations do.

They keep the flaws of the originals, so that scores can be compared: the first match counts even if
the model corrects itself, and the letter A may be the first letter of a word. The rules of
LLM-Adapters are those of `commonsense_evaluate.py` and `evaluate.py` (commit 8166572).
"""

import re
from decimal import Decimal

from malora_jax.data.examples import Example

# Words among which the first one in the reply is the answer, by their common beginning.
_CHOICES = {
    'true': 'true|false',
    'false': 'true|false',
    'solution': 'solution[12]',
    'answer': 'answer[1-5]',
    'ending': 'ending[1-4]',
    'option': 'option[12]',
}
_NUMBER = re.compile(r'-?\d+\.?\d*', re.ASCII)
_TOLERANCE = Decimal('0.001')


def first_choice_match(prediction: str, example: Example) -> float:
    """Return 1.0 if the first choice in the prediction is the right one, by LLM-Adapters' rule.

    The right answer ends in the right choice, such as 'the correct answer is answer3'. The choices
    are words of the same kind: answer1 to answer5, or true and false. Letter case matters.
    """
    right = example.answer.split()[-1]
    predicted = re.search(_CHOICES[right.rstrip('12345')], prediction)
    return float(predicted is not None and predicted[0] == right)


def last_number_match(prediction: str, example: Example) -> float:
    """Return 1.0 if the last number of prediction and answer differ by at most 0.001.

    This is LLM-Adapters' rule. Commas are removed first; a number may begin with a minus sign, even
    where that is a subtraction.
    """
    predicted = _last_number(prediction)
    right = _last_number(example.answer)
    if predicted is None or right is None:
        return 0.0
    return float(abs(predicted - right) <= _TOLERANCE)


def first_capital_match(prediction: str, example: Example) -> float:
    """Return 1.0 if the first of the capital letters A to E is the right one, else 0.0.

    This is LLM-Adapters' rule. The letter may be part of a word. The right letter is in parentheses
    at the end of the answer, as in 'The answer is (A).'.
    """
    predicted = re.search('[A-E]', prediction)
    right = re.findall(r'\(([A-E])\)', example.answer)[-1]
    return float(predicted is not None and predicted[0] == right)


def bbh_match(prediction: str, example: Example) -> float:
    r"""Return 1.0 if the prediction equals the target of a BBH question, else 0.0.

    As in `bbh_zeroshot` of lm-evaluation-harness, a period at the end, commas, line breaks,
    backslashes, double quotes and letter case are ignored. White space at both ends is ignored
    here, too.
    """
    return float(_plain(prediction) == _plain(example.answer))


def bbh_letter_match(prediction: str, example: Example) -> float:
    """Return 1.0 if the first letter in parentheses is the target of a BBH question, else 0.0.

    If the target is not a letter in parentheses, this is `bbh_match`.
    """
    if not re.fullmatch(r'\([A-Z]\)', example.answer.strip()):
        return bbh_match(prediction, example)
    predicted = re.search(r'\([A-Z]\)', prediction)
    return float(predicted is not None and predicted[0] == example.answer.strip())


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text.replace(',', ''))
    return Decimal(numbers[-1]) if numbers else None


def _plain(text: str) -> str:
    return re.sub(r'[,\n\\"]', '', re.sub(r'\.$', '', text.strip())).lower()
