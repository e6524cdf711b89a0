"""The form of LLM-Adapters: whole prompts and answers, and rows of the published files.

The published rows are from dataset/NAME/test.json and train.json of
github.com/AGI-Edgerunners/LLM-Adapters (Apache-2.0), commit 8166572.
"""

import pytest

from malora_jax.data.datasets import Item, get_dataset, get_form
from malora_jax.data.file_rows import Row
from tests.helpers.benchmark_rows import LOCATION, sample_row

INDENT = 16 * ' '
ALONE = (
    'Below is an instruction that describes a task. Write a response that appropriately completes '
    'the request. \n\n'
)


def published(instruction: str, output: str) -> str:
    """Return the text that the published evaluation shows and expects."""
    prompt = f'{ALONE}{INDENT}### Instruction:\n{INDENT}{instruction}\n\n'
    return f'{prompt}{INDENT}### Response:\n{INDENT}{output}'


def whole(name: str, fields: dict) -> str:
    example = get_form('llm_adapters')(name, get_dataset(name).parse(Row(LOCATION, fields)))
    assert example.answer[0] == ' '
    assert example.question[-1] == ' ', 'The other spaces stay in front of it.'
    return example.question + example.answer


@pytest.mark.parametrize(
    'name, fields, instruction, output',
    [
        (
            'arc_challenge',
            {
                'question': 'George wants to warm his hands quickly by rubbing them. Which skin '
                'surface will produce the most heat?',
                'choices': {
                    'text': [
                        *('dry palms', 'wet palms', 'palms covered with oil'),
                        'palms covered with lotion',
                    ],
                    'label': ['A', 'B', 'C', 'D'],
                },
                'answerKey': 'A',
            },
            'Please choose the correct answer to the question: George wants to warm his hands '
            'quickly by rubbing them. Which skin surface will produce the most heat?\n\nAnswer1: '
            'dry palms Answer2: wet palms Answer3: palms covered with oil Answer4: palms covered '
            'with lotion\n\nAnswer format: answer1/answer2/answer3/answer4',
            'the correct answer is answer1',
        ),
        (
            'siqa',
            {
                'context': "Tracy didn't go home that evening and resisted Riley's attacks.",
                'question': 'What does Tracy need to do before this?',
                'answerA': 'make a new plan',
                'answerB': 'Go home and see Riley',
                'answerC': 'Find somewhere to go',
                'label': '3',
            },
            "Please choose the correct answer to the question: Tracy didn't go home that evening "
            "and resisted Riley's attacks. What does Tracy need to do before this?\n\nAnswer1: "
            'make a new plan Answer2: Go home and see Riley Answer3: Find somewhere to go\n\n'
            'Answer format: answer1/answer2/answer3',
            'the correct answer is answer3',
        ),
        (
            'boolq',
            {
                'question': 'does ethanol take more energy make that produces',
                'passage': 'Ethanol fuel -- …',
                'answer': False,
            },
            'Please answer the following question with true or false, question: does ethanol take '
            'more energy make that produces?\n\nAnswer format: true/false',
            'the correct answer is false',
        ),
        (
            'piqa',
            {
                'goal': 'pin',
                'sol1': 'can melt a grater ',
                'sol2': 'can fit through a  grater ',
                'label': 1,
            },
            'Please choose the correct solution to the question: pin\n\nSolution1: can melt a '
            'grater \n\nSolution2: can fit through a  grater \n\nAnswer format: '
            'solution1/solution2',
            'the correct answer is solution2',
        ),
        (
            'hellaswag',
            {
                'activity_label': 'Roof shingle removal',
                'ctx_a': 'A man is sitting on a roof.',
                'ctx_b': 'he',
                'endings': [
                    'is using wrap to wrap a pair of skis.',
                    'is ripping level tiles off.',
                    "is holding a rubik's cube.",
                    'starts pulling up roofing on a roof.',
                ],
                'label': '3',
            },
            'Please choose the correct ending to complete the given sentence: Roof shingle removal:'
            ' A man is sitting on a roof. he\n\nEnding1: is using wrap to wrap a pair of skis. '
            "Ending2: is ripping level tiles off. Ending3: is holding a rubik's cube. Ending4: "
            'starts pulling up roofing on a roof.\n\nAnswer format: '
            'ending1/ending2/ending3/ending4',
            'the correct answer is ending4',
        ),
        (
            'winogrande',
            {
                'sentence': 'Sarah was a much better surgeon than Maria so _ always got the easier '
                'cases.',
                'option1': 'Sarah',
                'option2': 'Maria',
                'answer': '2',
            },
            'Please choose the correct answer to fill in the blank to complete the given sentence: '
            'Sarah was a much better surgeon than Maria so _ always got the easier cases.\n\n'
            'Option1: Sarah Option2: Maria Answer format: option1/option2',
            'the correct answer is option2',
        ),
        (
            'aqua',
            {
                'question': 'The original price of an item is discounted 22%. What was it?',
                'options': ['A)$61', 'B)$65', 'C)$67.40', 'D)$70', 'E)$78.20'],
                'correct': 'E',
            },
            'The original price of an item is discounted 22%. What was it? Answer Choices: (A) $61 '
            '(B) $65 (C) $67.40 (D) $70 (E) $78.20',
            'The answer is (E).',
        ),
        (
            'svamp',
            {
                'Body': 'Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars '
                'on each pack',
                'Question': 'How much do you have to pay to buy each pack?',
                'Answer': 51.0,
            },
            'Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack.'
            ' How much do you have to pay to buy each pack?',
            '51.0',
        ),
        (
            'math_14k',
            sample_row('math_14k'),
            ' Ann has 9 pears and eats 2. How many are left? ',
            '\nA: 9 - 2 = 7. The answer is 7.',
        ),
    ],
)
def test_the_text_is_the_published_one(name, fields, instruction, output):
    assert whole(name, fields) == published(instruction, output)


def test_an_input_has_a_section_of_its_own():
    assert whole('code_alpaca', sample_row('code_alpaca')) == (
        'Below is an instruction that describes a task, paired with an input that provides further '
        'context. Write a response that appropriately completes the request.\n\n'
        f'{INDENT}### Instruction:\n{INDENT}Sort the list.\n\n{INDENT}### Input:\n{INDENT}[2, 1]'
        f'\n\n{INDENT}### Response:\n{INDENT}[1, 2]'
    )
    alone = whole('code_alpaca', {**sample_row('code_alpaca'), 'input': ''})
    assert alone == published('Sort the list.', '[1, 2]')


def test_a_program_is_asked_as_always():
    item = get_dataset('humaneval').parse(Row(LOCATION, sample_row('humaneval')))
    asked = get_form('llm_adapters')('humaneval', item)
    assert asked == get_form('completion')('humaneval', item)


def test_other_datasets_are_asked_alike():
    item = Item('Which?', 'About plants.', ('fern', 'rock'), 1)
    asked = get_form('llm_adapters')('mmlu', item)
    assert 'About plants.\n\nWhich?\n\nAnswer1: fern Answer2: rock\n\nAnswer format: ' in (
        asked.question.replace('Please choose the correct answer to the question: ', '')
    )
    assert asked.answer == ' the correct answer is answer2'
