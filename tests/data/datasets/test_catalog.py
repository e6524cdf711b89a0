"""The catalog: rows of each dataset, read from files of the hub and of users."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from malora_jax.data.datasets import DATASETS, FORMS, default_scoring, get_dataset
from malora_jax.data.datasets.bbh import DESCRIPTIONS
from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from tests.helpers.benchmark_rows import LOCATION, row, sample_row

PAPER = {
    *('medmcqa', 'magicoder_evol', 'magicoder_oss', 'finance_alpaca', 'metamathqa', 'alpaca_gpt4'),
    *('e2e_nlg', 'humaneval', 'phrasebank', 'gsm8k', 'arc_challenge', 'arc_easy', 'piqa'),
    *('openbookqa', 'boolq'),
}
OTHERS = {
    *('siqa', 'hellaswag', 'winogrande', 'winogrande_six', 'aqua', 'svamp', 'mawps', 'addsub'),
    *('multiarith', 'singleeq', 'math_14k', 'code_alpaca', 'flan_v2', 'mmlu'),
}
LANGUAGES = ('bn', 'de', 'en', 'es', 'fr', 'ja', 'ru', 'sw', 'te', 'th', 'zh')


def test_all_datasets_are_there():
    tasks = {f'mgsm_{language}' for language in LANGUAGES}
    tasks |= {f'bbh_{task}' for task in DESCRIPTIONS}
    assert len(DESCRIPTIONS) == 27
    assert set(DATASETS) == PAPER | OTHERS | tasks
    assert all(get_dataset(name).name == name for name in DATASETS)


def test_an_unknown_dataset():
    with pytest.raises(UserError) as caught:
        get_dataset('gsm')
    assert str(caught.value).startswith("Unknown dataset 'gsm': did you mean gsm8k")


def test_every_dataset_is_trained_on_or_scored():
    for dataset in DATASETS.values():
        assert set(dataset.splits) <= {'train', 'validation', 'test'}
        assert {'train', 'test'} & set(dataset.splits)
        assert dataset.evidence.endswith('.')


def test_public_labels_decide_what_is_scored():
    scored = {name: dataset.splits.get('test') for name, dataset in DATASETS.items()}
    assert {name for name, split in scored.items() if split == 'validation'} == {
        *('medmcqa', 'piqa', 'boolq', 'siqa', 'hellaswag', 'winogrande')
    }
    assert scored['phrasebank'] == 'train'
    assert {name for name, split in scored.items() if split is None} == {
        *('magicoder_evol', 'magicoder_oss', 'finance_alpaca', 'metamathqa', 'alpaca_gpt4'),
        *('winogrande_six', 'math_14k', 'code_alpaca', 'flan_v2'),
    }


def test_files_are_those_of_the_converted_branch():
    dataset = get_dataset('piqa')
    assert (dataset.repository, dataset.revision) == ('ybisk/piqa', 'refs/convert/parquet')
    assert dataset.patterns == {
        'train': ['plain_text/train/*.parquet'],
        'test': ['plain_text/validation/*.parquet'],
    }


def test_rows_may_come_from_several_splits_and_configs():
    assert get_dataset('flan_v2').patterns == {
        'train': ['default/test/*.parquet', 'default/validation/*.parquet']
    }
    assert get_dataset('winogrande_six').patterns == {'train': ['winogrande_*/train/*.parquet']}
    assert get_dataset('winogrande').patterns['train'] == ['winogrande_xl/train/*.parquet']


def test_what_is_not_on_the_hub_has_an_origin():
    local = {name for name, dataset in DATASETS.items() if not dataset.repository}
    assert local == {'mawps', 'addsub', 'multiarith', 'singleeq', 'math_14k'}
    assert all(bool(dataset.origin) == (name in local) for name, dataset in DATASETS.items())


def test_commonsense_170k_has_the_published_number_of_rows():
    sizes = {'xs': 160, 's': 640, 'm': 2_558, 'l': 10_234, 'xl': 40_398, 'debiased': 9_248}
    others = {'boolq': 9_427, 'piqa': 16_113, 'siqa': 33_410, 'hellaswag': 39_905}
    others |= {'arc_easy': 2_251, 'arc_challenge': 1_119, 'openbookqa': 4_957}
    assert sum(sizes.values()) + sum(others.values()) == 170_420


@pytest.mark.parametrize('name', sorted(DATASETS))
def test_parquet_and_json_give_the_same_item(tmp_path, name):
    """A number may be an int in one format and text in the other."""
    dataset, fields = get_dataset(name), sample_row(name)
    table, lines = tmp_path / 'a.parquet', tmp_path / 'a.jsonl'
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([fields]), table)
    lines.write_text(json.dumps(fields), 'utf-8')
    items = [dataset.parse(row) for path in (table, lines) for row in dataset.read(path)]
    assert items[0] == items[1]
    assert bool(items[0].options) != bool(items[0].answers)


def test_only_medmcqa_leaves_rows_out():
    multi = row('medmcqa', choice_type='multi')
    for name, dataset in DATASETS.items():
        assert dataset.is_scored(Row(LOCATION, sample_row(name)))
        assert dataset.is_scored(multi) == (name != 'medmcqa')


def test_only_e2e_has_several_rows_for_one_question():
    assert [name for name, dataset in DATASETS.items() if dataset.multi_reference] == ['e2e_nlg']


@pytest.mark.parametrize('form', sorted(FORMS))
def test_what_has_a_test_split_has_a_scoring(form):
    for name, dataset in DATASETS.items():
        if 'test' in dataset.splits:
            default_scoring(name, form)
        else:
            with pytest.raises(UserError, match=f"Unknown dataset with a scoring rule '{name}'"):
                default_scoring(name, form)
