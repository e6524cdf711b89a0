"""Numbers, tables and pictures in the documentation come from the code and from stored results.

`make docs` rewrites them, and continuous integration fails on a difference. These tests check the
sources themselves, and plant each kind of error to show that it is caught.
"""

import dataclasses
import importlib
import re
import tarfile

import matplotlib.figure
import pytest

from docs import generate, records, reference_pages, tables_fair, tables_training
from malora_jax.adapters import METHODS, method
from malora_jax.benchmark import plots
from malora_jax.errors import UserError
from malora_jax.files import read_json, write_json
from malora_jax.training import run_config
from malora_jax.training.plan import plan
from tests.helpers.paths import ROOT

PARAMETERS = (ROOT / 'docs' / 'methods' / 'parameters.md').read_text('utf-8')
README = (ROOT / 'README.md').read_text('utf-8')
# Pages whose numbers are measurements.
RESULT_PAGES = [
    path
    for path in generate.pages()
    if path.name in ('README.md', 'performance.md', 'comparison.md', 'methods_results.md')
]


def planned_row(name: str) -> list[str]:
    """Return the expected row of the table of methods, without its equation."""
    config = importlib.import_module('configs.quickstart').get_config(name)
    config.model.name = 'llama2-7b'
    config.model.dtype = 'bfloat16'
    found, settings = plan(run_config(config.to_dict())), method(name)
    structure = settings.structure
    parameters, flops = found['parameters'], found['flops_per_token']
    size = str(structure.rank)
    if settings.has_router:
        size += f', {settings.router.top_k} of {settings.num_experts}'
    if 'core' in structure.factors:
        size += f', d {structure.subspace_rank}'
    return [
        size,
        f'{parameters["trainable"]:,}',
        f'{parameters["frozen_in_adapter"]:,}',
        f'{parameters["percent_of_base"]:.3f}',
        f'{(flops["adapter_forward"] + flops["adapter_backward"]) / 1e9:.2f}',
        f'{found["memory_bytes"]["total"] / 1e9:.2f}',
    ]


@pytest.mark.parametrize('name', METHODS)
def test_the_table_of_methods_is_the_plans(name):
    end = ' | '.join(planned_row(name))
    row = re.search(rf'^\| `{name}` \| [^|]+ \| {re.escape(end)} \|$', PARAMETERS, re.MULTILINE)
    expected = f'| `{name}` | EQUATION | {end} |'
    assert row, f'docs/methods/parameters.md needs this row, in the order of METHODS:\n{expected}'


def test_methods_stand_in_order_in_the_table_and_in_the_index():
    rows = re.findall(r'^\| `(\w+)` \|(?:[^|]*\|){7}$', PARAMETERS, re.MULTILINE)
    assert rows == list(METHODS)
    index = (ROOT / 'docs' / 'methods' / 'index.md').read_text('utf-8')
    assert re.findall(r'^\| \[`(\w+)`\]\(\1\.md\) \|', index, re.MULTILINE) == list(METHODS)


@pytest.mark.parametrize('name', METHODS)
def test_a_method_has_a_page_with_its_counts(name):
    page = ROOT / 'docs' / 'methods' / f'{name}.md'
    assert page.exists(), f'docs/methods/{name}.md is missing'
    assert f'<!-- generated: method {name} -->' in page.read_text('utf-8')


# Numbers and blocks of pages.


def test_a_stale_table_and_an_outdated_ratio_are_rewritten():
    page = (
        '<!-- generated: table -->\n\n| lora | 2.36 |\n\n<!-- end -->\n'
        'takes <!-- value: packed[malora][ratio]:.3f -->1.045<!-- end --> times'
    )
    values = {'packed': {'malora': {'ratio': 1.0631}}}
    filled = generate.fill(page, 'page.md', values, {'table': lambda: '| lora | 2.41 |'})
    assert '| lora | 2.41 |' in filled and '2.36' not in filled
    assert '-->1.063<!-- end -->' in filled
    assert generate.fill(filled, 'page.md', values, {'table': lambda: '| lora | 2.41 |'}) == filled


@pytest.mark.parametrize(
    'mark, message',
    [
        ('value: packed[malora][speed]:.2f', "'speed'"),
        ('value: pakced[malora][ratio]:.2f', "'pakced'"),
        ('generated: tabel', "'tabel'"),
    ],
)
def test_a_mark_without_a_source_is_named(mark, message):
    values = {'packed': {'malora': {'ratio': 1.0}}}
    with pytest.raises(ValueError, match=rf'page.md: the mark "{re.escape(mark)}".*{message}'):
        generate.fill(f'<!-- {mark} -->1.0<!-- end -->', 'page.md', values, {})


@pytest.mark.parametrize('path', generate.pages(), ids=lambda path: path.name)
def test_no_line_starts_with_the_mark_of_a_number(path):
    """Such a line would start a block of HTML, in which Markdown is not rendered."""
    assert not re.search(r'(?m)^\s*([-*] |\d+\. )?<!-- value', path.read_text('utf-8'))


def unsourced_numbers(text: str) -> list[str]:
    """Return the measured numbers of a page that stand outside marks, code and tables.

    A measured number has decimals, or a unit of time, memory or speed.
    """
    text = re.sub(r'<!-- (?:value|generated): .*?<!-- end -->', '', text, flags=re.DOTALL)
    text = re.sub(r'```.*?```|`[^`]*`|!?\[[^\]]*\]\([^)]*\)|<!--.*?-->', '', text, flags=re.DOTALL)
    units = r'(?:s|ms|GB|MB|GiB|seconds|minutes|hours|times|points|nats|tokens/s)\b'
    return re.findall(rf'(?<![\w.-])\d+\.\d+(?![\w.])|(?<![\w.-])\d[\d,]*\s{units}', text)


# Numbers of papers and settings, and estimates that say so.
QUOTED = {
    'README.md': {'3.11', '2.0', '20 minutes', '16 GB'},
    'performance.md': {'0.05', '1.075', '3.1', '3.2', '3.3', '1.6', '60 GB', '80 GB'},
    'comparison.md': set(),
    'methods_results.md': set(),
}


@pytest.mark.parametrize('path', RESULT_PAGES, ids=lambda path: path.name)
def test_measured_numbers_come_from_records(path):
    found = set(unsourced_numbers(path.read_text('utf-8'))) - QUOTED[path.name]
    assert not found, f'{path.name} states {found} without a mark "value: …"'


def test_a_number_without_a_source_is_found():
    assert unsourced_numbers('MALoRA takes 1.063 times LoRA, 2.51 s, and 250 MB.') == [
        *('1.063', '2.51', '250 MB')
    ]
    assert unsourced_numbers('<!-- value: a[b] -->1.063<!-- end --> times; `--rank=0.5`') == []


@pytest.mark.parametrize('name', records.names())
def test_a_record_says_how_it_was_measured(name):
    record = records.load(name)
    needed = {'command', 'commit', 'date', 'machine', 'versions', 'seeds', 'values'}
    assert needed <= record.keys() <= needed | {'transcribed'}
    assert record['machine'] and record['values']
    # A record that repeats published numbers may lack what was not noted then.
    if not record.get('transcribed'):
        assert record['command'] and (record['commit'] or record['date'])


def test_every_record_is_used():
    text = ''.join(path.read_text('utf-8') for path in generate.pages())
    text += ''.join(path.read_text('utf-8') for path in (ROOT / 'docs').glob('*.py'))
    unused = [
        name
        for name in records.names()
        if f'value: {name}[' not in text
        and f"'{name}'" not in text
        and f"'{name.removeprefix('ultralink_')}'" not in text
    ]
    assert not unused


# The archive of runs behind docs/comparison.md.


def test_an_unreadable_archive_is_caught(tmp_path, monkeypatch, request):
    """An archive whose configs this version cannot read, as one was published once."""
    with tarfile.open(records.RESULTS / 'table2_small.tar.xz') as archive:
        archive.extractall(tmp_path / 'runs', filter='data')
    config = next((tmp_path / 'runs').glob('*/config.json'))
    write_json(config, read_json(config) | {'format': 99})
    with tarfile.open(tmp_path / 'table2_small.tar.xz', 'w:xz') as archive:
        archive.add(tmp_path / 'runs', '.')
    monkeypatch.setattr(tables_training, 'RESULTS', tmp_path)
    for cached in (tables_training._archive, tables_training.comparison_groups):
        cached.cache_clear()
        request.addfinalizer(cached.cache_clear)
    with pytest.raises(UserError, match=r'config\.json'):
        tables_training.comparison_groups()


def test_the_configs_have_the_learning_rates_that_the_screening_has_chosen():
    for study, rates in tables_fair.CONFIGURED_RATES.items():
        assert rates == tables_fair.chosen_rates(study)


# Pictures.


def bar_heights(figure: matplotlib.figure.Figure) -> dict[str, float]:
    """Return the height of each stack of bars, by the label below it."""
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    heights = dict.fromkeys(labels, 0.0)
    for container in axes.containers:
        for label, patch in zip(labels, getattr(container, 'patches', ()), strict=False):
            heights[label] = max(heights[label], patch.get_y() + patch.get_height())
    return heights


def check_bar_heights(figure: matplotlib.figure.Figure, methods: dict) -> None:
    for name, height in bar_heights(figure).items():
        assert height == pytest.approx(methods[name]['step_s']), f'wrong bar height of {name}'


def test_bars_are_as_high_as_the_steps_in_the_table(monkeypatch):
    methods = records.load('packed')['values']['methods']
    drawn = []
    monkeypatch.setattr(plots, 'save', lambda figure, path: drawn.append(figure))
    plots.plot_step_times(ROOT / 'unused.svg', methods, 'title')
    check_bar_heights(drawn[0], methods)


def test_a_wrong_bar_height_is_caught():
    """Stacked medians of the parts are higher than the median of the step."""
    methods = records.load('packed')['values']['methods']
    figure = matplotlib.figure.Figure()
    axes = figure.add_subplot()
    bottom = [0.0] * len(methods)
    for part in ('forward_s', 'backward_s', 'optimizer_s'):
        heights = [found[part] for found in methods.values()]
        axes.bar(range(len(methods)), heights, bottom=bottom)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_xticks(range(len(methods)), list(methods))
    with pytest.raises(AssertionError, match='wrong bar height'):
        check_bar_heights(figure, methods)


def test_pictures_of_pages_exist():
    for path in generate.pages():
        for target in re.findall(r'!\[[^\]]*\]\(([^)]+)\)', path.read_text('utf-8')):
            assert (path.parent / target).exists(), f'{path.name} shows {target}'


def test_every_picture_is_shown():
    text = ''.join(path.read_text('utf-8') for path in generate.pages())
    for picture in (ROOT / 'docs' / 'images').iterdir():
        assert f'images/{picture.name}' in text, f'no page shows {picture.name}'


# The reference, and the front page.


def test_the_reference_has_every_config_field():
    page = (ROOT / 'docs' / 'reference' / 'config.md').read_text('utf-8')
    for section, kind in reference_pages.SECTIONS.items():
        for field in dataclasses.fields(kind):
            assert f'| `{section}.{field.name}` |' in page


def test_a_config_field_without_a_description_is_named():
    @dataclasses.dataclass
    class Section:
        """A section.

        Attributes:
            rank: Rank of an expert.
        """

        rank: int
        alpha: float

    with pytest.raises(ValueError, match=r'The docstring of Section lacks alpha\.'):
        reference_pages.attributes(Section)


def check_size(readme: str) -> None:
    size = len(readme.encode())
    assert size <= 8_000, f'README.md has {size:,} bytes, more than 8,000'


def test_the_readme_is_short():
    check_size(README)
    with pytest.raises(AssertionError, match='more than 8,000'):
        check_size(README + 'x' * 8_000)


def test_the_front_page_shows_the_stored_quickstart():
    results = read_json(records.RESULTS / 'quickstart.json')['values']
    shown = re.search(r'^average +.* (\d+\.\d)', README, re.MULTILINE)
    assert shown and f'{100 * results["average"]["after"]:.1f}' in shown[0]
