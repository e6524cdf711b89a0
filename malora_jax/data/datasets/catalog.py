"""Catalog of all public datasets; this file defines those of the MALoRA paper and MGSM.

The Hugging Face hub converts each dataset, whatever its own files or loading script, to Parquet
files on the branch `refs/convert/parquet`, named CONFIG/SPLIT/0000.parquet and so on. So only the
names of the repository, its config and its splits must be known. (The hub converts only a part of
very large datasets; those listed here are small.)

Our split 'test' is the split that the paper scores. PIQA, BoolQ and MedMCQA publish no labels for
their test split, so our 'test' is their validation split, as the paper's counts confirm. Financial
PhraseBank has only one split.

The paper scores 2,802 'cleaned' rows of MedMCQA's 4,183. UltraEval, OpenBMB's evaluation toolkit,
keeps the rows of `choice_type` 'single' with four distinct options, and so does `is_scored` here.
Whether these are 2,802 rows has not been counted. For E2E NLG, the paper trains on 34K rows and
scores 4,693 references. That is the cleaned version (Dušek et al. 2019), because the original
version has 42,061 training rows.
"""

from collections.abc import Mapping

from malora_jax.data.datasets import free_form, instructions, multiple_choice
from malora_jax.data.datasets.benchmarks import BENCHMARKS
from malora_jax.data.datasets.dataset import Dataset
from malora_jax.data.datasets.mgsm import HEADINGS, parse_mgsm, read_mgsm
from malora_jax.data.datasets.phrasebank import parse_phrasebank, read_phrasebank
from malora_jax.errors import unknown_name

_TRAIN = {'train': 'train'}
_TRAIN_TEST = {'train': 'train', 'test': 'test'}
_ALL = {'train': 'train', 'validation': 'validation', 'test': 'test'}
_NO_TEST_LABELS = {'train': 'train', 'test': 'validation'}

# In `evidence`, the card is the dataset's README in huggingface/datasets, with columns, types,
# splits and their sizes. The branch is the one with the converted Parquet files. Rows were parsed
# with the parser of the entry.
_DATASETS = (
    Dataset(
        'medmcqa',
        'openlifescienceai/medmcqa',
        'default',
        _NO_TEST_LABELS,
        multiple_choice.parse_medmcqa,
        'Card and loading script, which takes 1 from the original cop and has -1 in test; config: '
        'the commit that replaced the script by Parquet files. No rows were seen.',
        is_scored=multiple_choice.is_clean_medmcqa,
    ),
    # These are the 110K rows of the paper.
    Dataset(
        'magicoder_evol',
        'ise-uiuc/Magicoder-Evol-Instruct-110K',
        'default',
        _TRAIN,
        instructions.pair_parser('instruction', 'response'),
        'Columns: programs that load it; config and split: files of the branch. No rows were seen.',
    ),
    # This is the other part of Magicoder's data.
    Dataset(
        'magicoder_oss',
        'ise-uiuc/Magicoder-OSS-Instruct-75K',
        'default',
        _TRAIN,
        instructions.pair_parser('problem', 'solution'),
        'Columns: the card of a copy, and programs that load it; config and split: files of the '
        'branch. No rows were seen.',
    ),
    Dataset(
        'finance_alpaca',
        'gbharti/finance-alpaca',
        'default',
        _TRAIN,
        instructions.parse_alpaca,
        'Columns and split: programs that load it. The branch exists; that the config is '
        "'default', as of any dataset without one, was not seen. No rows were seen.",
    ),
    Dataset(
        'metamathqa',
        'meta-math/MetaMathQA',
        'default',
        _TRAIN,
        instructions.pair_parser('query', 'response'),
        'Columns: programs that load it; config and split: files of the branch. No rows were seen.',
    ),
    Dataset(
        'alpaca_gpt4',
        'vicgalle/alpaca-gpt4',
        'default',
        _TRAIN,
        instructions.parse_alpaca,
        'Columns and split: programs that load it. The branch, and that the config is '
        "'default', as of any dataset without one, was not seen. No rows were seen.",
    ),
    Dataset(
        'e2e_nlg',
        'tuetschek/e2e_nlg_cleaned',
        'default',
        _ALL,
        free_form.parse_e2e,
        'Card and loading script: 33,525, 4,299 and 4,693 rows. Rows of its CSV were seen; all '
        '42,061 and 4,672 of train and dev of the original version were parsed.',
        multi_reference=True,
    ),
    Dataset(
        'humaneval',
        'openai/openai_humaneval',
        'openai_humaneval',
        {'test': 'test'},
        free_form.parse_humaneval,
        'Card. All 164 rows of the original file were parsed.',
    ),
    Dataset(
        'phrasebank',
        'takala/financial_phrasebank',
        'sentences_75agree',
        {'test': 'train'},
        parse_phrasebank,
        'Card and loading script: 3,453 rows, as in the paper; config and split: files of the '
        'branch. No rows were seen.',
        read=read_phrasebank,
    ),
    Dataset(
        'gsm8k',
        'openai/gsm8k',
        'main',
        _TRAIN_TEST,
        free_form.parse_gsm8k,
        'Card; splits: programs that load it. All 7,473 rows of train were parsed.',
    ),
    Dataset(
        'arc_challenge',
        'allenai/ai2_arc',
        'ARC-Challenge',
        _ALL,
        multiple_choice.parse_arc,
        'Card; files of the branch. All 1,119 and 299 rows of train and validation were parsed.',
    ),
    Dataset(
        'arc_easy',
        'allenai/ai2_arc',
        'ARC-Easy',
        _ALL,
        multiple_choice.parse_arc,
        'Card; files of the branch. All 2,251 and 570 rows of train and validation were parsed.',
    ),
    Dataset(
        'piqa',
        'ybisk/piqa',
        'plain_text',
        _NO_TEST_LABELS,
        multiple_choice.parse_piqa,
        'Card and loading script, which has -1 in test; config and split: a program that loads '
        'files of the branch. All 16,113 and 1,838 rows of train and validation were parsed.',
    ),
    Dataset(
        'openbookqa',
        'allenai/openbookqa',
        'main',
        _ALL,
        multiple_choice.parse_openbookqa,
        'Card. All 4,957 and 500 rows of train and validation were parsed; 3 of train have the '
        'same wrong option twice.',
    ),
    Dataset(
        'boolq',
        'google/boolq',
        'default',
        _NO_TEST_LABELS,
        multiple_choice.parse_boolq,
        'Card. All 3,270 passages, questions and answers of validation were parsed, from a file '
        'with other columns.',
    ),
    *(
        Dataset(
            f'mgsm_{language}',
            'juletxara/mgsm',
            language,
            _TRAIN_TEST,
            parse_mgsm,
            'Loading script. The branch was not seen. The 250 rows of the original TSV in each of '
            'en, es, fr, ru and zh were parsed.',
            read=read_mgsm,
        )
        for language in HEADINGS
    ),
    *BENCHMARKS,
)
DATASETS: Mapping[str, Dataset] = {dataset.name: dataset for dataset in _DATASETS}


def get_dataset(name: str) -> Dataset:
    """Return the public dataset with that name.

    For example::

        get_dataset('gsm8k').repository  # 'openai/gsm8k'

    Raises:
        UserError: There is no such dataset.
    """
    if name not in DATASETS:
        raise unknown_name('dataset', name, DATASETS)
    return DATASETS[name]
