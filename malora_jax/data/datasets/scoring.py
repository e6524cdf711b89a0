"""Default scoring rule of each public dataset, for each prompt form.

The rules follow UltraEval, OpenBMB's evaluation toolkit. For multiple-choice questions in the
completion form, it takes the option whose text has the largest log-probability. In the sectioned
form, it takes the letter that the model generates. GSM8K has 8 shots.

UltraEval generates up to 300 tokens, unless the dataset says otherwise. It uses stop strings only
for HumanEval, where it cuts the program at the first stop string. Our rules also stop early for
letters and for GSM8K. This only saves time, because UltraEval ignores the rest of the text: it
scores only the beginning where the answer is a letter, and for GSM8K only the number after the
first '####'.

UltraEval's settings for HumanEval could not be read. These settings, and those of datasets that
UltraEval does not have, are our own choice.
"""

import dataclasses
import functools

from malora_jax.data.datasets.forms import FORMS
from malora_jax.data.datasets.mgsm import HEADINGS
from malora_jax.data.scorers import label_match, letter_match, number_match, rouge_l
from malora_jax.data.scoring import (
    GenerationScoring,
    LikelihoodScoring,
    ProgramScoring,
    Scoring,
)
from malora_jax.errors import unknown_name

_LETTER = GenerationScoring('letter', 'accuracy', letter_match, stop=('\n',), max_new_tokens=8)
_number_scoring = functools.partial(GenerationScoring, 'number', 'accuracy', number_match)
_OPTIONS = {'completion': LikelihoodScoring(), 'sectioned': _LETTER}

_SCORING: dict[str, dict[str, Scoring]] = {
    **dict.fromkeys(
        ('medmcqa', 'arc_challenge', 'arc_easy', 'piqa', 'openbookqa', 'boolq'), _OPTIONS
    ),
    'phrasebank': {
        'completion': GenerationScoring(
            'label', 'accuracy', label_match, stop=('\n',), max_new_tokens=32
        ),
        'sectioned': _LETTER,
    },
    # Generation stops at the next question, which would contain other numbers.
    'gsm8k': dict.fromkeys(
        FORMS, _number_scoring(shots=8, stop=('\nQuestion:',), max_new_tokens=300)
    ),
    **{
        # Most tokenizers need more tokens for other scripts than for English.
        f'mgsm_{language}': dict.fromkeys(
            FORMS, _number_scoring(stop=(f'\n{words.question}',), max_new_tokens=512)
        )
        for language, words in HEADINGS.items()
    },
    'e2e_nlg': dict.fromkeys(
        FORMS, GenerationScoring('rouge_l', 'rouge_l', rouge_l, stop=('\n',), max_new_tokens=128)
    ),
    'humaneval': dict.fromkeys(
        FORMS,
        ProgramScoring(
            stop=('\nclass', '\ndef', '\n#', '\n@', '\nprint', '\nif'),
            max_new_tokens=512,
        ),
    ),
}


def default_scoring(name: str, form: str) -> Scoring:
    """Return the default scoring rule of a dataset in a prompt form.

    For example::

        default_scoring('gsm8k', 'completion').shots  # 8

    Args:
        name: Name of the dataset.
        form: Name of the prompt form.

    Raises:
        UserError: There is no such form, or the dataset has no scoring rule because it is only for
            training.
    """
    if name not in _SCORING:
        raise unknown_name('dataset with a scoring rule', name, _SCORING)
    if form not in FORMS:
        raise unknown_name('form', form, FORMS)
    return dataclasses.replace(_SCORING[name][form], form=form)
