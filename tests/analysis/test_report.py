"""Reports about short runs of the tiny model: contents and error messages."""

import base64
import contextlib
import html
import io
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from malora_jax import progress, training
from malora_jax.analysis.report import write_report
from malora_jax.errors import UserError
from malora_jax.export.adapter import write_adapter
from malora_jax.files import read_json, read_json_lines
from malora_jax.training import run_config
from malora_jax.training.restore import saved_model
from malora_jax.training.setup import build_setup
from tests.helpers.runs import STEPS, TASKS, toy_run_config
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


@pytest.fixture(scope='module')
def report(runs, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """Report about the mixture and the single-task runs, on all questions, and output on stderr."""
    output = tmp_path_factory.mktemp('report')
    with contextlib.redirect_stderr(io.StringIO()) as stderr, pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, 'DELAY_SECONDS', 0)  # Show all progress.
        write_report([runs.mixed, runs.alone, runs.reverse], output, max_questions=0)
    return output, stderr.getvalue()


@pytest.fixture(scope='module')
def output(report) -> pathlib.Path:
    return report[0]


@pytest.fixture(scope='module')
def page(output) -> str:
    return (output / 'report.html').read_text('utf-8')


@pytest.fixture(scope='module')
def numbers(output):
    return read_json(output / 'analysis.json')


def words(page: str) -> str:
    """Return the visible text of an HTML page."""
    return ' '.join(html.unescape(re.sub(r'<[^>]*>', ' ', page.replace('<wbr>', ''))).split())


def test_long_computations_show_their_progress(report):
    lines = report[1].splitlines()
    assert 'weights: run 3/3' in lines
    for name in ('similarity', 'spectra of alone', 'spectra of reverse'):
        assert f'{name}: linear 6/6' in lines
    assert any(re.fullmatch(r'alone: step 0: batch (\d+)/\1', line) for line in lines)


def test_one_file_holds_the_pictures(page, output):
    found = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    pictures = {path.read_bytes() for path in output.glob('*.png')}
    assert {base64.b64decode(each) for each in found} == pictures and len(pictures) > 20
    assert len(re.findall(r'<img ', page)) == len(found)
    assert not re.search(r'(src|href)="(?!data:|#)', page) and '<script' not in page
    assert '<meta name="viewport" content="width=device-width' in page
    # Each caption says what the image shows and how to read it.
    captions = re.findall(r'<img [^>]*>\s*<figcaption>([^<]*)</figcaption>', page)
    assert len(captions) == len(found) and all(len(caption) > 60 for caption in captions)


def test_names_are_escaped(page):
    assert 'mixed &lt;b&gt;&amp;' in page and 'mixed <b>' not in page


def test_links_lead_to_sections(page):
    links = re.findall(r'href="#([^"]*)"', page)
    assert links == re.findall(r'<section id="([^"]*)"', page) and len({*links}) == len(links) == 12


def test_results_come_before_weights_and_routing(numbers):
    assert [*numbers] == [
        *('summary', 'scores', 'tasks', 'answers', 'seesaw', 'runs', 'similarity', 'spectra'),
        *('routing-mixed-b', 'routing-alone', 'routing-reverse', 'costs'),
    ]


def test_the_summary_is_about_these_runs(runs, page, numbers):
    text = words(page)
    text = text[text.index('malora on tiny, seed 0.') : text.index('Scores and losses Scores in')]
    for heading in ('Scores', 'Differences between rows', 'What was learned', 'What to look at'):
        assert heading in text
    after = read_json(runs.mixed / 'results.json')['average']['after']
    assert f'{runs.mixed.name}: ' in text and f'{100 * after:.1f} [' in text
    routing = numbers['routing-mixed-b']
    end = routing['steps'][str(STEPS)]['task_information']
    assert f'Task information of the routers is {end:.3f} bits of at most 1.00' in text
    assert 0 < routing['chance_information'] <= routing['max_chance_information']
    assert {*routing['idle_experts']} == {*routing['load']}


def test_example_answers_are_those_of_the_run(runs, page):
    text = words(page)
    row = read_json_lines(runs.mixed / 'answers_after.jsonl')[0]
    assert f'{row["question"]} {row["expected"]} ' in text


def test_counts_are_those_of_the_metrics(runs, page, numbers):
    for path in (runs.mixed, runs.alone):
        records = read_json_lines(path / 'metrics.jsonl')
        found = numbers['runs'][path.name]
        assert found['steps'] == len(records) == records[-1]['step']
        assert found['tokens'] == sum(record['tokens'] for record in records)
        drawn = {k.split('/')[1]: v for k, v in records[-1].items() if k.startswith('examples/')}
        assert found['examples'] == sum(drawn.values()) > 0
        assert f'{found["tokens"]:,}' in words(page)
        for task, of_task in numbers['tasks'][path.name].items():
            assert of_task['examples'] == drawn[task]
            losses = [r[f'loss/{task}'] for r in records if f'loss/{task}' in r]
            assert (of_task['first_loss'], of_task['last_loss']) == (losses[0], losses[-1])
    assert [*numbers['tasks'][runs.mixed.name]] == [*TASKS]
    assert numbers['runs'][runs.mixed.name]['steps'] == STEPS


def test_parameters_and_seconds_are_those_of_the_run(runs, numbers):
    found = numbers['costs'][runs.mixed.name]
    results = read_json(runs.mixed / 'results.json')
    assert found['parameters'] == results['parameters']
    assert found['seconds']['step'] > 0 and found['seconds']['evaluate'] > 0
    events = read_json_lines(runs.mixed / 'goodput.jsonl')
    times = [value for event in events for key, value in event.items() if key.endswith('_time')]
    assert sum(found['seconds'].values()) == pytest.approx(times[-1] - times[0])


def test_routing_is_that_of_the_results_and_counts_every_token(runs, numbers):
    found = numbers['routing-mixed-b']
    results = read_json(runs.mixed / 'results.json')
    for name, value in results['routing'].items():
        assert found['steps'][str(STEPS)][name] == pytest.approx(value, rel=1e-5)
    assert [*found['steps']] == ['0', '4', '6']
    run = run_config(toy_run_config(runs.weights))
    batches = [*build_setup(run).held_out_batches()]
    tokens = sum(int((batch['segment_ids'] > 0).sum()) for batch in batches)
    layers = run.model.num_layers
    assert found['questions'] == 12 and found['tasks'] == [*TASKS]
    slots = run.adapter.router.top_k * tokens
    assert found['token_slots'] == {name: [slots] * layers for name in run.adapter.targets}
    for load_LGE in found['load'].values():
        np.testing.assert_allclose(np.sum(load_LGE, axis=-1), 1.0, atol=1e-4)
        assert np.shape(load_LGE) == (layers, len(TASKS), run.adapter.num_experts)


def test_where_all_experts_take_part_shares_are_those_of_their_gates(runs, tmp_path):
    heads = {'adapter__top_k': 4, 'adapter__shared_rank': 4, 'training__steps': 2}
    training.train(toy_run_config(runs.weights, 'hydralora', **heads), tmp_path / 'heads')
    write_report([tmp_path / 'heads'], tmp_path / 'report', max_questions=0)
    found = read_json(tmp_path / 'report' / 'analysis.json')['routing-heads']
    run = run_config(toy_run_config(runs.weights))
    tokens = sum(
        int((batch['segment_ids'] > 0).sum()) for batch in build_setup(run).held_out_batches()
    )
    for name, load_LGE in found['load'].items():
        np.testing.assert_allclose(found['token_slots'][name], tokens, rtol=1e-5)
        np.testing.assert_allclose(np.sum(load_LGE, axis=-1), 1.0, atol=1e-4)
        assert np.std(load_LGE) > 1e-4  # Token slots would be a quarter each.
    page = words((tmp_path / 'report' / 'report.html').read_text('utf-8'))
    assert 'an expert has a share of the gates' in page and 'Example tokens' not in page


def test_the_paper_s_settings_are_compared(numbers, runs):
    found = {each['compared']: each for each in numbers['similarity']}
    assert {*found} == {
        *(f'experts within {path.name}' for path in (runs.mixed, runs.alone, runs.reverse)),
        'malora (rank 4) runs of different tasks',
    }
    across = found['malora (rank 4) runs of different tasks']
    assert across['pairs'] == 16
    # All runs have the same seed and so the same start: all 4 × 4 pairs are those within a run, and
    # each expert with itself.
    within = found[f'experts within {runs.alone.name}']
    for linear, start in across['A']['start'].items():
        own = np.array(within['A']['start'][linear])
        np.testing.assert_allclose(start, (12 * own + 4) / 16, atol=1e-6)
        assert np.all(np.array(own) > np.array(within['A']['independent'][linear]))


def test_similarities_are_compared_with_those_of_the_paper(page, numbers):
    def mean(values) -> float:
        return float(np.mean([*values.values()]))

    def count(reference: str) -> str:
        """Return in how many comparisons A exceeds its reference by more than B exceeds chance."""
        found = [
            mean(each['A']['trained']) - mean(each['A'][reference])
            > mean(each['B']['trained']) - mean(each['B']['independent'])
            for each in numbers['similarity']
        ]
        verdict = {0: ', the reverse of the paper', 4: ', as in the paper'}.get(sum(found), '')
        return f'{sum(found)} of 4 comparisons{verdict}.'

    text = words(page)
    level = f'A exceeds independent subspaces by more than B does in {count("independent")}'
    change = f'By the change since the start, A is ahead of B in {count("start")}'
    assert f'{level} {change}' in text


def test_the_seesaw_is_the_difference_of_scores(runs, numbers, page):
    found = numbers['seesaw'][runs.mixed.name]
    mixed = read_json(runs.mixed / 'results.json')['tasks']
    for task, path in zip(TASKS, (runs.alone, runs.reverse), strict=True):
        alone = read_json(path / 'results.json')['tasks'][task]
        assert found[task]['against'] == path.name
        assert found[task]['mean'] == pytest.approx(mixed[task]['after'] - alone['after'])
        low, high = found[task]['interval']
        assert low <= found[task]['mean'] <= high
    assert 'mixed <b>& alone, reverse' in words(page)


def test_a_run_without_experts_says_what_cannot_be_shown(runs, tmp_path):
    write_report([runs.lora], tmp_path)
    text = words((tmp_path / 'report.html').read_text('utf-8'))
    assert 'lora has one expert and no router: there is no routing to show.' in text
    assert 'Nothing can be compared: no run here has several experts' in text
    assert 'directions that carry 90%' in text and 'Nothing to compare: add' in text
    assert not (tmp_path / 'lora_routing.png').exists()


def test_without_routing_no_base_is_read(runs, tmp_path):
    weights = str(tmp_path / 'gone.gguf')
    write_report([runs.mixed], tmp_path / 'out', weights=weights, routing=False)
    text = words((tmp_path / 'out' / 'report.html').read_text('utf-8'))
    assert 'Skipped because of --norouting' in text and 'experts within mixed' in text
    with pytest.raises(UserError, match=re.escape('gone.gguf')):
        write_report([runs.mixed], tmp_path / 'out', weights=weights)


def test_an_unfinished_run_needs_a_word(runs, tmp_path):
    path = tmp_path / 'run'
    shutil.copytree(runs.mixed, path)
    for name in ('results.json', 'answers_after.jsonl', 'goodput.jsonl'):
        (path / name).unlink()
    assert refusal([path], tmp_path) == (
        f'The run in {path} has not finished: there is no results.json. Resume it, or analyze it '
        'as it is with --unfinished.'
    )
    write_report([path], tmp_path / 'out', allow_unfinished=True, routing=False)
    text = words((tmp_path / 'out' / 'report.html').read_text('utf-8'))
    assert 'score after, % –' in text and 'run has no goodput.jsonl' in text


def refusal(workdirs: list[pathlib.Path], tmp_path: pathlib.Path) -> str:
    with pytest.raises(UserError) as caught:
        write_report(workdirs, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_what_is_no_run_is_refused(runs, tmp_path):
    assert refusal([tmp_path], tmp_path) == (
        f'{tmp_path} holds no run: there is no {tmp_path}/config.json, and no directory in it has '
        'results.json.'
    )
    assert refusal([runs.lora, runs.lora], tmp_path) == f'--workdir: {runs.lora} is given twice.'
    write_adapter(saved_model(runs.lora).load(), tmp_path / 'exported')
    assert refusal([tmp_path / 'exported'], tmp_path) == (
        f'{tmp_path}/exported is an exported adapter; --workdir must name the run that it was '
        'exported from.'
    )


def test_a_run_that_lacks_something_is_refused(runs, tmp_path):
    path = tmp_path / 'run'
    shutil.copytree(runs.lora, path)
    (path / 'metrics.jsonl').unlink()
    assert refusal([path], tmp_path) == (
        f'{path} is not a complete run: {path}/metrics.jsonl is missing.'
    )
    for checkpoint in (path / 'checkpoints').iterdir():
        shutil.rmtree(checkpoint)
    assert refusal([path], tmp_path) == (
        f'There is no checkpoint in {path}/checkpoints: resume the training.'
    )


def test_a_run_without_checkpoints_is_shown_without_weights(runs, tmp_path):
    path = tmp_path / 'run'
    shutil.copytree(runs.mixed, path)
    shutil.rmtree(path / 'checkpoints')
    sections = write_report([path, runs.lora], tmp_path / 'out', routing=False)
    names = [section.name for section in sections]
    assert names[-2:] == ['no_checkpoints', 'costs'] and 'similarity' in names
    text = words((tmp_path / 'out' / 'report.html').read_text('utf-8'))
    assert 'These sections need checkpoints, which are missing from run.' in text
    (path / 'results.json').unlink()
    with pytest.raises(UserError, match='There is no checkpoint in'):
        write_report([path], tmp_path / 'none', allow_unfinished=True)


def test_runs_of_different_bases_are_refused(runs, tmp_path):
    path = tmp_path / 'run'
    shutil.copytree(runs.lora, path)
    base = read_json(path / 'base.json')
    (path / 'base.json').write_text(json.dumps(base | {'fingerprint': 'another'}))
    assert 'base.json was edited' in refusal([runs.lora, path], tmp_path)
    for manifest in (path / 'checkpoints').glob('*/manifest'):
        shutil.rmtree(manifest)  # Older runs have checkpoints without a record of their content.
    assert refusal([runs.lora, path], tmp_path) == (
        f'{runs.lora} and {path} have different base models, tiny ({base["fingerprint"]}) and tiny '
        '(another): analyze them separately.'
    )


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    path = tmp_path / 'lora'
    shutil.copytree(runs.lora, path)
    write_report([runs.lora, path], tmp_path / 'out', routing=False)
    found = read_json(tmp_path / 'out' / 'analysis.json')
    assert [*found['runs']] == [str(runs.lora), str(path)]
    assert [*found['scores']] == ['base', str(runs.lora), str(path)]
    (alike,) = found['similarity']
    assert alike['compared'] == 'lora (rank 4) runs of the same tasks' and alike['pairs'] == 1
    np.testing.assert_allclose(alike['A']['trained']['q'], 1.0)
    np.testing.assert_allclose(alike['A']['start']['q'], 1.0)
    pictures = {path.name for path in (tmp_path / 'out').glob('lora*.png')}
    assert pictures == {'lora_spectra.png', 'lora-2_spectra.png'}


def test_weights_may_lie_elsewhere(runs, tmp_path):
    elsewhere = tmp_path / 'elsewhere.gguf'
    write_tiny_gguf(elsewhere)
    write_report([runs.alone], tmp_path / 'out', weights=str(elsewhere), max_questions=2)
    found = read_json(tmp_path / 'out' / 'analysis.json')['routing-alone']
    assert found['questions'] == 2 and found['tasks'] == ['toy_copy']
