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

In the form 'llm_adapters', a reply of up to 32 tokens (256 for mathematics) ends where the model
writes another '### Response:', and the answer is extracted as in LLM-Adapters. That evaluation
searches with four beams; here, decoding is greedy, as in CoMoL's. Our own extraction of numbers and
letters is reported next to it. The form 'lm_eval' scores like lm-evaluation-harness. MMLU has 5
shots, the first ones of the subject, as in its paper and as with `--num_fewshot 5` of the harness.
"""

import dataclasses
import functools

from malora_jax.data.datasets.bbh import DESCRIPTIONS
from malora_jax.data.datasets.forms import FORMS
from malora_jax.data.datasets.mgsm import HEADINGS
from malora_jax.data.published_scorers import (
    bbh_letter_match,
    bbh_match,
    first_capital_match,
    first_choice_match,
    last_number_match,
)
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
# LLM-Adapters keeps the reply up to the next heading of its template.
_RESPONSE = ('### Response:',)
_CHOICE = GenerationScoring(
    'first_choice', 'accuracy', first_choice_match, stop=_RESPONSE, max_new_tokens=32
)
_SOLUTION = functools.partial(GenerationScoring, metric='accuracy', stop=_RESPONSE)
_NUMBER = _SOLUTION(
    'last_number', score=last_number_match, max_new_tokens=256, more=(('number', number_match),)
)
_CAPITAL = _SOLUTION(
    'first_capital', score=first_capital_match, max_new_tokens=256, more=(('letter', letter_match),)
)
_OPTIONS: dict[str, Scoring] = {
    'completion': LikelihoodScoring(),
    'sectioned': _LETTER,
    'llm_adapters': _CHOICE,
    'lm_eval': LikelihoodScoring(),
}
# Generation stops at the next question, which would contain other numbers.
_PROBLEM = _number_scoring(stop=('\nQuestion:',), max_new_tokens=300)
_BBH = GenerationScoring(
    'exact_match',
    'accuracy',
    bbh_match,
    stop=('Q:', '\nQuestion:'),
    max_new_tokens=256,
    more=(('first_letter', bbh_letter_match),),
)


def _in_all_forms(scoring: Scoring, **others: Scoring) -> dict[str, Scoring]:
    """Return the same rule for every form, except the forms for which another one is given."""
    return {**dict.fromkeys(FORMS, scoring), **others}


_SCORING: dict[str, dict[str, Scoring]] = {
    **dict.fromkeys(
        (
            *('medmcqa', 'arc_challenge', 'arc_easy', 'piqa', 'openbookqa', 'boolq'),
            *('siqa', 'hellaswag', 'winogrande'),
        ),
        _OPTIONS,
    ),
    'mmlu': {
        **_OPTIONS,
        'lm_eval': LikelihoodScoring(shots=5),
    },
    'aqua': {**_OPTIONS, 'llm_adapters': _CAPITAL},
    'phrasebank': {
        **_OPTIONS,
        'completion': GenerationScoring(
            'label', 'accuracy', label_match, stop=('\n',), max_new_tokens=32
        ),
    },
    'gsm8k': _in_all_forms(dataclasses.replace(_PROBLEM, shots=8), llm_adapters=_NUMBER),
    **dict.fromkeys(
        ('svamp', 'mawps', 'addsub', 'multiarith', 'singleeq'),
        _in_all_forms(_PROBLEM, llm_adapters=_NUMBER),
    ),
    **{f'bbh_{task}': _in_all_forms(_BBH) for task in DESCRIPTIONS},
    **{
        # Most tokenizers need more tokens for other scripts than for English.
        f'mgsm_{language}': _in_all_forms(
            _number_scoring(stop=(f'\n{words.question}',), max_new_tokens=512),
            llm_adapters=_number_scoring(stop=_RESPONSE, max_new_tokens=512),
        )
        for language, words in HEADINGS.items()
    },
    'e2e_nlg': _in_all_forms(
        GenerationScoring('rouge_l', 'rouge_l', rouge_l, stop=('\n',), max_new_tokens=128)
    ),
    'humaneval': _in_all_forms(
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
