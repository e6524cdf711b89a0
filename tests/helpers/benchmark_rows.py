"""One handwritten row per public dataset, with the dataset's columns and types on Hugging Face."""

from typing import Any

import pytest

from malora_jax.data.datasets import BrokenRowError
from malora_jax.data.file_rows import Row

LOCATION = 'a.jsonl line 3'

_LETTERED = {'text': ['milk', 'sand', 'iron', 'wool'], 'label': ['A', 'B', 'C', 'D']}
_SOLVED = 'Two bags hold 2*3 = <<2*3=6>>6 pears.\nThat makes 6+1,000 = 1,006.\n#### 1,006'
_PROGRAM = {
    'task_id': 'Test/0',
    'prompt': '\n\ndef twice(n):\n    """ Doubles n.\n    """\n',
    'canonical_solution': '    return 2 * n\n',
    'test': '\n\ndef check(candidate):\n    assert candidate(2) == 4\n',
    'entry_point': 'twice',
}

_TEST = {'instruction': ' Ann has 9 pears and eats 2. How many are left? ', 'answer': '7.0'}
_BLANK = {
    'sentence': 'The cup fell off the shelf, and the _ broke.',
    'option1': 'shelf',
    'option2': 'cup',
    'answer': '2',
}

ROWS: dict[str, dict[str, Any]] = {
    'medmcqa': {
        'id': 'x',
        'question': 'Which one is a vitamin?',
        'opa': 'Thiamine',
        'opb': 'Glucose',
        'opc': 'Keratin',
        'opd': 'Water',
        'cop': 0,
        'choice_type': 'single',
        'exp': None,
    },
    'magicoder_evol': {'instruction': 'Print 1 in Python.', 'response': 'print(1)'},
    'magicoder_oss': {'lang': 'python', 'problem': 'Print 2.', 'solution': 'print(2)'},
    'finance_alpaca': {
        'instruction': 'What is a bond?',
        'input': '',
        'output': 'A loan that can be traded.',
        'text': '',
    },
    'metamathqa': {
        'type': 'GSM_Rephrased',
        'query': 'What is 1 + 1?',
        'original_question': 'What is 1 + 1?',
        'response': '1 + 1 = 2.\n#### 2\nThe answer is: 2',
    },
    'alpaca_gpt4': {
        'instruction': 'Translate into German.',
        'input': 'house',
        'output': 'Haus',
        'text': 'Below is an instruction …',
    },
    'e2e_nlg': {
        'meaning_representation': 'name[Aroma], area[riverside]',
        'human_reference': 'Aroma is by the river.',
    },
    'humaneval': _PROGRAM,
    'phrasebank': {'sentence': 'Profit rose to EUR 3 mn .', 'label': 2},
    'gsm8k': {'question': 'How many pears are there?', 'answer': _SOLVED},
    'arc_challenge': {
        'id': 'x',
        'question': 'Which one rusts?',
        'choices': _LETTERED,
        'answerKey': 'C',
    },
    'arc_easy': {
        'id': 'y',
        'question': 'Which one is wet?',
        'choices': {'text': ['sand', 'rain', 'dust'], 'label': ['1', '2', '3']},
        'answerKey': '2',
    },
    'piqa': {
        'goal': 'To cool tea,',
        'sol1': 'blow on it.',
        'sol2': 'boil it.',
        'label': 0,
    },
    'openbookqa': {
        'id': 'z',
        'question_stem': 'A sheep gives',
        'choices': _LETTERED,
        'answerKey': 'D',
    },
    'boolq': {
        'question': 'is tea a drink',
        'passage': 'Tea -- Tea is a drink made of leaves.',
        'answer': True,
    },
    'mgsm_en': {
        'question': 'A robe takes 2 bolts of 500 ells. How many ells is that?',
        'answer': None,
        'answer_number': 1000,
        'equation_solution': None,
    },
    'mgsm_zh': {
        'question': '问题：一包有 3 个梨。两包有多少个？',
        'answer': '逐步解答：2 * 3 = 6。答案是：6。',
        'answer_number': 6,
        'equation_solution': '2 * 3 = 6.',
    },
    'siqa': {
        'context': 'Ann gave Bob her umbrella.',
        'question': 'How would Bob feel?',
        'answerA': 'grateful',
        'answerB': 'thirsty ',
        'answerC': 'old',
        'label': '1',
    },
    'hellaswag': {
        'ind': 4,
        'activity_label': 'Baking',
        'ctx_a': 'A cook stirs the dough.',
        'ctx_b': 'the cook',
        'ctx': 'A cook stirs the dough. the cook',
        'endings': ['swims.', 'heats the oven.', 'reads a map.', 'sells a car.'],
        'label': '1',
    },
    'winogrande': _BLANK,
    'winogrande_six': _BLANK,
    'aqua': {
        'question': 'What is 2 + 3?',
        'options': ['A)4', 'B)5', 'C)6', 'D)7', 'E)8'],
        'rationale': '2 + 3 = 5. Answer: B',
        'correct': 'B',
    },
    'svamp': {
        'ID': 'x',
        'Body': 'Ann has 9 pears and eats 2',
        'Question': 'How many are left?',
        'Equation': '( 9.0 - 2.0 )',
        'Answer': 7.0,
        'Type': 'Subtraction',
    },
    'mawps': {**_TEST, 'input': '', 'output': ''},
    'addsub': {**_TEST, 'input': '', 'output': '9 - 2 = 8.'},
    'multiarith': {**_TEST, 'input': '', 'output': '9 - 2 = 7.'},
    'singleeq': {**_TEST, 'input': '', 'output': '9 - 2 = 7.'},
    'math_14k': {**_TEST, 'input': '', 'output': '\nA: 9 - 2 = 7. The answer is 7.'},
    'code_alpaca': {'instruction': 'Sort the list.', 'input': '[2, 1]', 'output': '[1, 2]'},
    'flan_v2': {'inputs': 'Is ice cold?', 'targets': 'yes', 'task': 'x'},
    'mmlu': {
        'question': ' Which one is a prime number? ',
        'subject': 'number_theory',
        'choices': ['4', '6', '7', '9'],
        'answer': 2,
    },
    'bbh': {'input': 'Which is cold?\nOptions:\n(A) fire\n(B) ice', 'target': '(B)'},
}


def sample_row(name: str) -> dict[str, Any]:
    """Return the dataset's row; the tasks of BBH share one, and so do most languages of MGSM."""
    return ROWS.get(name, ROWS['bbh' if name.startswith('bbh_') else 'mgsm_en'])


def row(name: str, **changes: Any) -> Row:
    """Return the dataset's row with some fields changed; the value `...` removes a field."""
    fields = {**ROWS[name], **changes}
    return Row(LOCATION, {field: value for field, value in fields.items() if value is not ...})


def broken_row_message(parse, changed: Row) -> str:
    """Return a parser's message for a broken row, without `LOCATION`, with which it must start."""
    with pytest.raises(BrokenRowError) as caught:
        parse(changed)
    message = str(caught.value)
    assert message.startswith(LOCATION) and '\n' not in message
    return message.removeprefix(LOCATION)
