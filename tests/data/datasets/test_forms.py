"""Prompt forms: the whole text that a model sees, for each kind of dataset."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malora_jax.data import Example
from malora_jax.data.datasets import (
    DATASETS,
    FORMS,
    Item,
    default_scoring,
    get_dataset,
    get_form,
    with_shots,
)
from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from tests.helpers.benchmark_rows import LOCATION, ROWS, sample_row

REQUIREMENT = (
    'Requirement:\nChoose and respond with the letter of the correct answer, including the '
    'parentheses.\n'
)


def item(name: str) -> Item:
    return get_dataset(name).parse(Row(LOCATION, sample_row(name)))


def example(form: str, name: str) -> Example:
    return get_form(form)(name, item(name))


@pytest.mark.parametrize(
    'name, question, answer',
    [
        ('arc_challenge', 'Question: Which one rusts?\nAnswer:', ' iron'),
        ('openbookqa', 'Question: A sheep gives\nAnswer:', ' wool'),
        ('piqa', 'Question: To cool tea,\nAnswer:', ' blow on it.'),
        (
            'boolq',
            'Tea -- Tea is a drink made of leaves.\nQuestion: is tea a drink?\nAnswer:',
            ' Yes',
        ),
        (
            'medmcqa',
            'Question: Which one is a vitamin?\nOptions: A. Thiamine\nB. Glucose\nC. Keratin\n'
            'D. Water\nAnswer:',
            ' Thiamine',
        ),
        (
            'phrasebank',
            'Question: What is the sentiment of this financial news, negative, neutral or '
            'positive? Profit rose to EUR 3 mn .\nAnswer:',
            ' positive',
        ),
        ('alpaca_gpt4', 'Question: Translate into German.\nhouse\nAnswer:', ' Haus'),
        ('magicoder_oss', 'Question: Print 2.\nAnswer:', ' print(2)'),
        (
            'gsm8k',
            'Question: How many pears are there?\nAnswer:',
            ' Two bags hold 2*3 = <<2*3=6>>6 pears.\nThat makes 6+1,000 = 1,006.\n#### 1,006',
        ),
        (
            'e2e_nlg',
            'Question: Describe the restaurant with these attributes: name[Aroma], '
            'area[riverside]\nAnswer:',
            ' Aroma is by the river.',
        ),
        (
            'mgsm_en',
            'Question: A robe takes 2 bolts of 500 ells. How many ells is that?\n'
            'Step-by-Step Answer:',
            ' 1000',
        ),
        ('mgsm_zh', '问题：一包有 3 个梨。两包有多少个？\n逐步解答：', '2 * 3 = 6。答案是：6。'),
        (
            'humaneval',
            'def twice(n):\n    """ Doubles n.\n    """',
            '\n    return 2 * n\n',
        ),
    ],
)
def test_completion(name, question, answer):
    asked = example('completion', name)
    assert (asked.question, asked.answer) == (question, answer)


@pytest.mark.parametrize(
    'name, question, answer',
    [
        (
            'arc_easy',
            f'Question:\nWhich one is wet?\n{REQUIREMENT}Options:\n(A) sand\n(B) rain\n(C) dust\n'
            'Answer:\n',
            '(B)',
        ),
        (
            'boolq',
            'Context:\nTea -- Tea is a drink made of leaves.\nQuestion:\nis tea a drink?\n'
            f'{REQUIREMENT}Options:\n(A) Yes\n(B) No\nAnswer:\n',
            '(A)',
        ),
        ('gsm8k', 'Question:\nHow many pears are there?\nAnswer:\n', ROWS['gsm8k']['answer']),
        ('alpaca_gpt4', 'Question:\nTranslate into German.\nhouse\nAnswer:\n', 'Haus'),
        (
            'mgsm_zh',
            '问题：\n一包有 3 个梨。两包有多少个？\n逐步解答：\n',
            '2 * 3 = 6。答案是：6。',
        ),
        (
            'humaneval',
            'def twice(n):\n    """ Doubles n.\n    """',
            '\n    return 2 * n\n',
        ),
    ],
)
def test_sectioned(name, question, answer):
    asked = example('sectioned', name)
    assert (asked.question, asked.answer) == (question, answer)


def test_a_question_mark_is_not_put_twice():
    asked = FORMS['completion']('boolq', Item('is it?', 'It is.', ('Yes', 'No'), 0))
    assert asked.question == 'It is.\nQuestion: is it?\nAnswer:'


def test_braces_are_only_text():
    asked = FORMS['completion']('e2e_nlg', Item('name[{x}] {}', answers=('{y}',)))
    assert asked.question.endswith('name[{x}] {}\nAnswer:') and asked.answer == ' {y}'


@pytest.mark.parametrize('form', sorted(FORMS))
@pytest.mark.parametrize('name', sorted(DATASETS))
def test_what_is_needed_to_score(form, name):
    asked, parsed = example(form, name), item(name)
    metadata = dict(asked.metadata)
    assert metadata.pop('language', '') == name.partition('mgsm_')[2]
    if parsed.options:
        assert asked.answer == metadata['options'][metadata['label']]
        # The prompts of the options differ only where the harness scores a part of the sentence.
        prompts = metadata.pop('prompts', [asked.question] * len(parsed.options))
        assert (len(set(prompts)) > 1) == ((form, name[:10]) == ('lm_eval', 'winogrande'))
        assert prompts[metadata['label']] == asked.question
        assert set(metadata) == {'options', 'label'}
        texts = {*zip(prompts, metadata['options'], strict=True)}
        assert len(texts) == len(parsed.options)
    else:
        assert asked.answer == metadata['answers'][0]
        program = {'test', 'entry_point'} if name == 'humaneval' else set()
        assert set(metadata) == {'answers'} | program


@pytest.mark.parametrize('form', sorted(FORMS))
def test_every_reference_is_a_right_continuation(form):
    asked = FORMS[form]('e2e_nlg', Item('name[A]', answers=('One.', 'Two.')))
    assert [text.strip() for text in asked.metadata['answers']] == ['One.', 'Two.']


def test_a_right_program_passes_its_test():
    asked = example('completion', 'humaneval')
    scope: dict = {}
    exec(asked.question + asked.answer + asked.metadata['test'], scope)
    scope['check'](scope[asked.metadata['entry_point']])


TEXT = st.text('abc ?:{}\n', min_size=1).map(str.strip).filter(bool)


@given(
    st.sampled_from(sorted(FORMS)),
    TEXT,
    st.lists(TEXT, min_size=2, max_size=5, unique=True),
    st.data(),
)
def test_texts_are_in_the_prompt_as_they_are(form, question, options, data):
    label = data.draw(st.integers(0, len(options) - 1))
    asked = FORMS[form]('arc_easy', Item(question, '', tuple(options), label))
    assert question in asked.question
    if form == 'sectioned':
        assert f'{asked.answer} {options[label]}\n' in asked.question
    elif form == 'llm_adapters':
        assert asked.answer == f' the correct answer is answer{label + 1}'
        assert f'Answer{label + 1}: {options[label]}' in asked.question
    else:
        assert asked.answer == f' {options[label]}'


def test_shots():
    shots = [Example('Q: 1?\nA:', ' one', {}), Example('Q: 2?\nA:', ' two', {})]
    asked = Example('Q: 3?\nA:', ' three', {'answers': (' three',)})
    assert with_shots(asked, []) == asked
    shown = with_shots(asked, shots)
    assert shown.question == 'Q: 1?\nA: one\n\nQ: 2?\nA: two\n\nQ: 3?\nA:'
    assert (shown.answer, shown.metadata) == (asked.answer, asked.metadata)
    assert with_shots(asked, shots[:1], '\n###\n').question == 'Q: 1?\nA: one\n###\nQ: 3?\nA:'


@pytest.mark.parametrize('form', sorted(FORMS))
@pytest.mark.parametrize('name', sorted(DATASETS))
def test_no_right_answer_is_cut_short(form, name):
    """No target answer contains a stop text."""
    with contextlib.suppress(UserError):
        for text in default_scoring(name, form).stop:
            assert text not in example(form, name).answer


@pytest.mark.parametrize('form', sorted(FORMS))
@pytest.mark.parametrize('name', ['gsm8k', 'mgsm_en', 'mgsm_zh'])
def test_generation_stops_at_the_next_question(form, name):
    """A base model continues a right answer with another question, in the format of the shots."""
    asked = example(form, name)
    shown = with_shots(asked, [asked]).question
    assert any(text in shown for text in default_scoring(name, form).stop)


def test_an_unknown_form():
    with pytest.raises(UserError, match="Unknown form 'complete': did you mean completion"):
        get_form('complete')
    with pytest.raises(UserError, match="Unknown form 'letters'"):
        default_scoring('piqa', 'letters')


@pytest.mark.parametrize(
    'name, form, rule, shots',
    [
        ('piqa', 'completion', 'likelihood', 0),
        ('piqa', 'sectioned', 'letter', 0),
        ('medmcqa', 'sectioned', 'letter', 0),
        ('phrasebank', 'completion', 'label', 0),
        ('gsm8k', 'completion', 'number', 8),
        ('mgsm_sw', 'sectioned', 'number', 0),
        ('e2e_nlg', 'completion', 'rouge_l', 0),
        ('humaneval', 'sectioned', 'code', 0),
        ('piqa', 'llm_adapters', 'first_choice', 0),
        ('gsm8k', 'llm_adapters', 'last_number', 0),
        ('svamp', 'completion', 'number', 0),
        ('aqua', 'llm_adapters', 'first_capital', 0),
        ('aqua', 'completion', 'likelihood', 0),
        ('mmlu', 'lm_eval', 'likelihood', 5),
        ('mmlu', 'completion', 'likelihood', 0),
        ('bbh_snarks', 'lm_eval', 'exact_match', 0),
    ],
)
def test_default_scoring(name, form, rule, shots):
    scoring = default_scoring(name, form)
    assert (scoring.rule, scoring.shots) == (rule, shots)
    assert bool(scoring.max_new_tokens) == (rule != 'likelihood')
