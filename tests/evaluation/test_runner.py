import dataclasses
import math

import pytest

from malora_jax import progress
from malora_jax.data import (
    Example,
    GenerationScoring,
    LikelihoodScoring,
    ProgramScoring,
    Scoring,
    Task,
    TaskSplit,
    exact_match,
    get_template,
)
from malora_jax.evaluation import runner, scores
from malora_jax.evaluation.code_execution import CompletionOutcome
from malora_jax.evaluation.likelihood import Likelihood
from malora_jax.evaluation.runner import EvalModel, answer_held_out
from malora_jax.evaluation.scores import Answer

PLAIN = get_template('plain')


class Utf8Tokenizer:
    eos_id = 256
    bos_id = None

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        return bytes(ids).decode()

    def token_to_id(self, token: str) -> int | None:
        return 257


class NoSource:
    def examples(self, seed: int, count: int) -> list[Example]:
        raise AssertionError


def half_for_length(prediction: str, example: Example) -> float:
    return 1.0 if prediction == example.answer else 0.5 * (len(prediction) == len(example.answer))


@dataclasses.dataclass
class Benchmark:
    """A task with a scoring rule of its own."""

    name: str
    scoring: Scoring


def same(prediction: str, example: Example) -> float:
    return float(prediction == example.answer.strip())


EXACT = Task('runner_exact', NoSource(), exact_match)
PARTIAL = Task('runner_partial', NoSource(), half_for_length)
NUMBER = Benchmark(
    'runner_number',
    GenerationScoring('number', 'accuracy', same, stop=('\n',), max_new_tokens=99, shots=3),
)
OPTIONS = Benchmark('runner_options', LikelihoodScoring())
CODE = Benchmark('runner_code', ProgramScoring(stop=('\ndef',), max_new_tokens=50))


@dataclasses.dataclass
class Scripted:
    """Fake generator that returns scripted texts and records its requests."""

    says: dict[str, list[str]]
    model = 'model'
    batch_size = 8
    max_new_tokens: int = 16
    asked: list[tuple[list[str], dict]] = dataclasses.field(default_factory=list)

    def generate_texts(self, variables, prompts, tokenizer, *, advance, **settings):
        assert variables == 'variables'
        texts = [bytes(prompt).decode() for prompt in prompts]
        self.asked.append((texts, settings))
        for _ in range(len(texts) * settings.get('samples', 1)):
            advance(1)
        return [self.says[text] for text in texts]


SPLITS = [
    TaskSplit(EXACT, [], [Example('a?', '1', {}), Example('b?', '12345', {})], 1000),
    TaskSplit(NUMBER, [Example('trained on only', '1', {})], [], 1000),
    TaskSplit(PARTIAL, [], [Example('c?', '77', {}), Example('d?', '88', {})], 1000),
]
SAYS = {
    'Question: a?\nAnswer:': [' 1 '],
    'Question: b?\nAnswer:': [' 12346'],
    'Question: c?\nAnswer:': ['77'],
    'Question: d?\nAnswer:': [' 89'],
    'Question: e?\nAnswer:': [' 5'],
}


@pytest.fixture(autouse=True)
def asked(monkeypatch) -> list[tuple[str, str, bool]]:
    """Recorded likelihood requests (context, text, has an end token), answered from `NATS`."""
    requests = []

    def log_likelihoods(model, variables, of_batch, *, batch_size, pad_multiple, advance):
        assert (model, variables) == ('model', 'variables')
        assert batch_size * pad_multiple == 8 * 64
        found = []
        for context, tokens in of_batch:
            ends = tokens[-1] > 255
            text = bytes(tokens[: len(tokens) - ends]).decode()
            requests.append((bytes(context).decode(), text, ends))
            nats = NATS.get(text, 0.5 * len(text)) + 0.25 * ends
            found.append(Likelihood(-nats, len(tokens), text in GREEDY))
            advance(1)
        return found

    monkeypatch.setattr(runner, 'log_likelihoods', log_likelihoods)
    return requests


GREEDY: set[str] = set()  # Answers that greedy decoding would produce.
# Per character, the second option of the first question is the most likely.
NATS = {' ab': 2.0, ' abcdefgh': 4.0, ' b': 1.0, ' c': 1.0, ' d': 3.0}


def ask(generator, splits, template=PLAIN, **settings):
    examinee = EvalModel(generator, 'variables', Utf8Tokenizer(), template, **settings)
    return answer_held_out(examinee, splits, 'test')


def test_every_question_is_answered_and_scored_by_its_task(asked):
    """The loss covers the expected answer, the space before it and its end token."""
    assert ask(Scripted(SAYS), SPLITS) == [
        Answer('runner_exact', 'a?', '1', '1', 1.0, 1.25, 3),
        Answer('runner_exact', 'b?', '12345', '12346', 0.0, 3.25, 7),
        Answer('runner_partial', 'c?', '77', '77', 1.0, 1.75, 4),
        Answer('runner_partial', 'd?', '88', '89', 0.5, 1.75, 4),
    ]
    prompts, answers = list(SAYS), (' 1', ' 12345', ' 77', ' 88')
    assert asked == [(p, a, True) for p, a in zip(prompts, answers, strict=False)]


def test_prompts_end_where_the_answer_begins_and_there_is_room_for_it():
    generator = Scripted(SAYS)
    ask(generator, SPLITS)
    prompts = list(SAYS)
    # The longest answer with the space before it, and four more tokens.
    first, second = ({'max_new_tokens': n + 4, 'stop': ()} for n in (6, 3))
    assert generator.asked == [(prompts[:2], first), (prompts[2:4], second)]


def test_one_bar_shows_all_questions(monkeypatch, capsys):
    monkeypatch.setattr(progress, 'LINE_SECONDS', 0)
    ask(Scripted(SAYS), SPLITS)
    exact, partial = 'runner_exact', 'runner_partial'
    shown = ['0/4, compiling…', *(f'{n}/4, {exact}' for n in (0, 1, 2))]
    shown += [*(f'{n}/4, {partial}' for n in (2, 3, 4)), '4/4']
    told = capsys.readouterr().err.splitlines()
    assert told == [f'test: question {text}' for text in shown]


def test_a_task_may_set_its_own_limit_and_stops():
    generator = Scripted(SAYS)
    (answer,) = ask(generator, [TaskSplit(NUMBER, [], [Example('e?', ' 5', {})], 1)])
    assert answer == Answer('runner_number', 'e?', ' 5', '5', 1.0, 1.75, 4)
    assert generator.asked[0][1] == {'max_new_tokens': 99, 'stop': ('\n',)}


def test_expected_answers_that_greedy_decoding_produces_are_not_generated(monkeypatch, capsys):
    monkeypatch.setattr(progress, 'LINE_SECONDS', 0)
    monkeypatch.setattr(f'{__name__}.GREEDY', {' 12345', ' 77', ' 88', ' 6\nNext'})
    generator = Scripted(SAYS)
    stopped = TaskSplit(NUMBER, [], [Example('f?', '6\nNext', {})], 1)
    found = ask(generator, [*SPLITS, stopped])
    answers = [('1', 1.0), ('12345', 1.0), ('77', 1.0), ('88', 1.0), ('6', 0.0)]
    assert [(answer.answer, answer.score) for answer in found] == answers
    assert [texts for texts, _ in generator.asked] == [['Question: a?\nAnswer:']]
    shown = [line.split()[2] for line in capsys.readouterr().err.splitlines()]
    assert shown[-1] == '5/5'


def test_an_answer_beyond_the_limit_is_generated(monkeypatch):
    monkeypatch.setattr(f'{__name__}.GREEDY', {' 5' + 97 * '0', ' 5' + 96 * '0'})
    generator = Scripted({'Question: e?\nAnswer:': [' 5']})
    for digits, asked in ((96, 0), (97, 1)):
        example = Example('e?', '5' + digits * '0', {})
        ask(generator, [TaskSplit(NUMBER, [], [example], 1)])
        assert len(generator.asked) == asked


def test_options_are_taken_by_their_likelihood(asked, monkeypatch, capsys):
    monkeypatch.setattr(progress, 'LINE_SECONDS', 0)
    questions = [
        Example('x?', ' ab', {'options': (' ab', ' abcdefgh'), 'label': 0}),
        Example('y?', ' c', {'options': (' b', ' c', ' d'), 'label': 1}),
    ]
    bare = get_template('bare')
    found = ask(Scripted({}), [TaskSplit(OPTIONS, [], questions, 2)], bare)
    texts = [[*((o, False) for o in e.metadata['options']), (e.answer, True)] for e in questions]
    assert asked == [
        (e.question, *t) for e, of_e in zip(questions, texts, strict=True) for t in of_e
    ]
    name = 'runner_options'
    assert found == [
        Answer(name, 'x?', ' ab', ' ab', 1.0, 2.25, 4, {'accuracy_normalized': 0.0}),
        Answer(name, 'y?', ' c', ' b', 0.0, 1.25, 3, {'accuracy_normalized': 0.0}),
    ]
    shown = ['0/2, compiling…', *(f'{n}/2, {name}' for n in range(3)), '2/2']
    told = capsys.readouterr().err.splitlines()
    assert told == [f'test: question {text}' for text in shown]


@pytest.mark.parametrize('template', ['bare', 'chatml'])
def test_programs_are_run_and_pass_at_k_is_estimated(monkeypatch, capsys, template):
    monkeypatch.setattr(progress, 'LINE_SECONDS', 0)
    prompt = 'def one():\n    """One."""'
    example = Example(prompt, ' 1', {'test': 'check', 'entry_point': 'one'})
    body = '    return 1'
    said = {'bare': f'\n{body}', 'chatml': f'```python\ndef one():\n{body}\n```'}[template]
    ran = []

    def score_completions(problems, programs, advance):
        advance(sum(map(len, programs)))
        ran.extend(zip(problems, programs, strict=True))
        return [
            [CompletionOutcome(passed) for passed in (True, False, False, True)] for _ in programs
        ]

    monkeypatch.setattr(runner.code_execution, 'score_completions', score_completions)
    template = get_template(template)
    shown = template.prompt(Utf8Tokenizer(), prompt)
    generator = Scripted({shown: [said] * 4})
    (answer,) = ask(
        generator, [TaskSplit(CODE, [], [example], 1)], template, samples=4, temperature=0.8, seed=3
    )
    assert generator.asked[0][1] == {
        **{'samples': 4, 'temperature': 0.8, 'seed': 3, 'max_new_tokens': 50},
        # In a chat answer, a definition may follow another one, an import, or a sentence.
        'stop': () if template.name == 'chatml' else ('\ndef',),
    }
    assert (answer.score, answer.more) == (0.5, {'pass@4': 1.0})
    assert answer.tokens == len(template.completion(Utf8Tokenizer(), prompt, ' 1')) + 1
    ((problem, programs),) = ran
    assert (problem.prompt, problem.test, problem.entry_point) == (prompt, 'check', 'one')
    for program in programs:
        scope = {}
        exec(problem.prompt + program, scope)
        assert scope['one']() == 1
    shown = ['0/1, compiling…', '0/1, runner_code', '1/1, runner_code', '1/1']
    told = capsys.readouterr().err.splitlines()
    assert told == [f'test: question {text}' for text in shown]


def test_means_and_intervals():
    binary = [Answer('t', 'q', 'e', 'a', s, 1.0, 1, {'n': s / 2}) for s in (1.0, 0.0, 1.0, 1.0)]
    assert scores.mean_score(binary) == 0.75
    (more,) = scores.more_scores(binary).values()
    assert more['score'] == 0.375
    assert more['interval'][0] < 0.375 < more['interval'][1]
    # Wilson's interval for 3 of 4, by its formula.
    z = 1.959963984540054
    middle = (0.75 + z**2 / 8) / (1 + z**2 / 4)
    half = z * math.sqrt(0.75 * 0.25 / 4 + z**2 / 64) / (1 + z**2 / 4)
    assert scores.interval(binary) == pytest.approx([middle - half, middle + half])
    graded = [Answer('t', 'q', 'e', 'a', s, 1.0, 1) for s in (0.2, 0.4, 0.5, 0.9)]
    low, high = scores.interval(graded)
    assert 0.2 <= low < 0.5 < high <= 0.9
    assert scores.group_by_task([*binary, Answer('u', 'q', 'e', 'a', 1.0, 1.0, 1)]).keys() == {
        't',
        'u',
    }
    # The mean is total nats by total tokens, not the mean of 1 and 3.
    uneven = [Answer('t', 'q', 'e', 'a', 1.0, 1.0, 1), Answer('t', 'q', 'e', 'a', 1.0, 9.0, 3)]
    assert scores.mean_loss(uneven) == 2.5
    assert scores.average({'a': 0.5, 'b': 0.2}) == pytest.approx(0.35)


@pytest.mark.parametrize('kind', Scoring.__subclasses__())
def test_every_rule_has_a_function_that_asks_the_model(kind):
    assert runner._answer_task.dispatch(kind) is not runner._answer_task.dispatch(object)


def test_the_same_answer_may_have_more_scores():
    scoring = GenerationScoring('same', 'accuracy', same, more=(('half', half_for_length),))
    split = TaskSplit(Benchmark('runner_more', scoring), [], [Example('e?', '5', {})], 1000)
    (answer,) = ask(Scripted(SAYS), [split])
    assert (answer.score, answer.more) == (1.0, {'half': 1.0})
    (answer,) = ask(Scripted({'Question: e?\nAnswer:': ['6']}), [split])
    assert (answer.score, answer.more) == (0.0, {'half': 0.5})


def test_the_prompts_of_options_may_differ(asked):
    options = {'options': (' d', ' d'), 'label': 1, 'prompts': ('e?', 'longer?')}
    split = TaskSplit(OPTIONS, [], [Example('longer?', ' d', options)], 1000)
    ask(Scripted(SAYS), [split], template=get_template('bare'))
    assert [request[:2] for request in asked] == [
        ('e?', ' d'),
        ('longer?', ' d'),
        ('longer?', ' d'),
    ]
