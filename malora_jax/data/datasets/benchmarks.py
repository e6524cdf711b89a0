"""Catalog entries of the datasets that recent papers on mixtures of LoRA experts compare on.

- commonsense_170k of LLM-Adapters (Hu et al. 2023) are the training sets of BoolQ, PIQA, Social
  IQa, HellaSwag, WinoGrande, ARC-Easy, ARC-Challenge and OpenBookQA, in the form 'llm_adapters'. Of
  WinoGrande it has all six sizes, XS to XL and the debiased one, although each is a part of XL:
  9,427 + 16,113 + 33,410 + 39,905 + 63,238 + 2,251 + 1,119 + 4,957 = 170,420 rows.
- math_14k of LLM-Adapters has solutions by ChatGPT and GPT-4 to training questions of GSM8K and
  AQuA, without MAWPS. It is scored on GSM8K, AQuA, SVAMP and MAWPS, or in CoMoL on GSM8K, AQuA,
  SVAMP, MultiArith, AddSub and SingleEq.
- CodeAlpaca-20k is scored on HumanEval.
- A subset of Flan v2 is scored on BBH. Only Align-LoRA names a subset that can be downloaded.

LLM-Adapters is github.com/AGI-Edgerunners/LLM-Adapters at commit 8166572. Where the test split has
no labels, the validation split is scored, as in all of these papers.
"""

from malora_jax.data.datasets import commonsense, instructions, math_problems
from malora_jax.data.datasets.bbh import DESCRIPTIONS, bbh_parser
from malora_jax.data.datasets.dataset import Dataset
from malora_jax.data.datasets.mmlu import parse_mmlu

_LLM_ADAPTERS = 'https://github.com/AGI-Edgerunners/LLM-Adapters'
_NO_TEST_LABELS = {'train': 'train', 'test': 'validation'}


def _test_set(name: str, directory: str, rows: int, note: str = '') -> Dataset:
    """Return a test set of LLM-Adapters whose answers are numbers."""
    return Dataset(
        name,
        '',
        '',
        {'test': f'dataset/{directory}/test.json'},
        math_problems.parse_numbered,
        f'All {rows:,} rows of the file were parsed.{note}',
        origin=_LLM_ADAPTERS,
    )


BENCHMARKS = (
    Dataset(
        'siqa',
        'lighteval/siqa',
        'default',
        _NO_TEST_LABELS,
        commonsense.parse_siqa,
        'Card: 33,410 and 1,954 rows; files of the branch. All 1,954 rows of validation were '
        'parsed, from a file with other columns (eric11eca/common-bench); 5 have the right option '
        'twice. The rows of train were not seen in this form.',
    ),
    Dataset(
        'hellaswag',
        'Rowan/hellaswag',
        'default',
        _NO_TEST_LABELS,
        commonsense.parse_hellaswag,
        'Card: 39,905 and 10,042 rows, columns and types. 25 rows of validation were seen, in the '
        'form of LLM-Adapters. The branch was not seen.',
    ),
    Dataset(
        'winogrande',
        'allenai/winogrande',
        'winogrande_xl',
        _NO_TEST_LABELS,
        commonsense.parse_winogrande,
        'Columns and types: card of a copy; 40,398 and 1,267 rows. All 1,267 rows of validation '
        'were parsed, from the form of LLM-Adapters. The branch was not seen.',
    ),
    # The training data of commonsense_170k; its rows are those of XL, many of them repeated.
    Dataset(
        'winogrande_six',
        'allenai/winogrande',
        'winogrande_*',
        {'train': 'train'},
        commonsense.parse_winogrande,
        'Sizes: card of a copy. That LLM-Adapters has all six is concluded from its total, 170,420 '
        'rows. No rows were seen.',
    ),
    Dataset(
        'aqua',
        'deepmind/aqua_rat',
        'raw',
        {'train': 'train', 'validation': 'validation', 'test': 'test'},
        math_problems.parse_aqua,
        'Files of the branch. All 254 rows each of dev and test were parsed, from the original '
        'repository (google-deepmind/AQuA at commit 26b64ed).',
    ),
    Dataset(
        'svamp',
        'tongyx361/svamp',
        'default',
        {'test': 'test'},
        math_problems.parse_svamp,
        'Card: 1,000 rows, columns and types. All 1,000 rows of the original file '
        '(arkilpatel/SVAMP at commit 689d7cc) were parsed. The branch was not seen.',
    ),
    _test_set('mawps', 'mawps', 238),
    _test_set('addsub', 'AddSub', 395),
    _test_set('multiarith', 'MultiArith', 600),
    _test_set('singleeq', 'SingleEq', 508),
    Dataset(
        'math_14k',
        '',
        '',
        {'train': 'ft-training_set/math_14k.json'},
        math_problems.parse_solved,
        'README of LLM-Adapters. The file itself could not be opened. 486 rows of the same form '
        '(validation.json of math_14k in DCDmllm/CoMoL at commit b9aac3d) were parsed.',
        origin=_LLM_ADAPTERS,
    ),
    Dataset(
        'code_alpaca',
        'sahil2801/CodeAlpaca-20k',
        'default',
        {'train': 'train'},
        instructions.parse_code_alpaca,
        'Card of a copy: 20,022 rows and the columns. All 2,017 rows of code_alpaca_2k.json '
        '(sahil280114/codealpaca at commit 2f78ddc) were parsed. The branch was not seen.',
    ),
    Dataset(
        'flan_v2',
        'lorahub/flanv2',
        'default',
        {'train': 'test+validation'},
        instructions.pair_parser('inputs', 'targets'),
        'Columns, and that these two splits are trained on: data_load.py of Align-LoRA '
        '(jinda-liu/Align-LoRA). Its commits are listed on the hub. No rows were seen.',
    ),
    *(
        Dataset(
            f'bbh_{task}',
            'SaylorTwift/bbh',
            task,
            {'test': 'test'},
            bbh_parser(task),
            'Task files of lm-evaluation-harness 0.4.13. All rows of the original file '
            '(suzgunmirac/BIG-Bench-Hard at commit 9ee07bd) were parsed. The branch was not seen.',
        )
        for task in DESCRIPTIONS
    ),
    Dataset(
        'mmlu',
        'cais/mmlu',
        'all',
        {'train': 'dev', 'validation': 'validation', 'test': 'test'},
        parse_mmlu,
        'Card of a copy: 285, 1,531 and 14,042 rows, columns and types. The 57 files each of dev '
        'and test of a copy as CSV (HaeChan0305/MLILAB-FedLLM at commit d92730e) were parsed. The '
        'branch was not seen.',
        has_subjects=True,
    ),
)
