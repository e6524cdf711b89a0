"""Published scores on the benchmarks of configs/commonsense.py, math.py and code.py.

They are from other papers than MALoRA's, with other ranks, adapted linears and training lengths
than a run may have. So a run belongs to the row of its method, whatever its settings are, and a
report also shows the rows without a run. Scores are accuracies in %, and pass@1 for HumanEval.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from malora_jax.runs.paper import PAPER_TABLES, PaperRow, PaperTable

_D2MORA = 'README of iLearn-Lab/AAAI26-D2MoRA at commit c60b03f'
_DORA = 'README of commonsense_reasoning in NVlabs/DoRA at commit 7e2f10a'
_LLM_ADAPTERS = 'README of AGI-Edgerunners/LLM-Adapters at commit 8166572'
_COMOL = 'CoMoL, arXiv 2603.00573, from a summary; the paper itself could not be opened'


@dataclasses.dataclass(frozen=True)
class PublishedTable(PaperTable):
    """A table of scores from several papers.

    For example::

        TABLES['commonsense'].row_of(config)  # 'hydralora'
    """

    shows_all: bool = True

    def row_of(self, config: Mapping[str, Any]) -> str | None:
        """Return the name of the row of the run's method; None if there is no such row.

        Args:
            config: Raw config of the run.
        """
        for name, row in self.rows.items():
            if row.method and row.method == config['method']:
                return name
        return None


_COMMONSENSE = (
    *('boolq', 'piqa', 'siqa', 'hellaswag'),
    *('winogrande', 'arc_easy', 'arc_challenge', 'openbookqa'),
)
_MATH = ('gsm8k', 'aqua', 'mawps', 'svamp')

# Label, name of the method in this package ('' = none), source, scores by task, and average.
_COMMONSENSE_ROWS = {
    'lora': (
        *('LoRA r = 64', 'lora', _D2MORA),
        (70.91, 81.34, 76.20, 81.41, 80.19, 77.31, 63.99, 76.80, 76.02),
    ),
    'dora': (
        *('DoRA r = 64', 'dora', _D2MORA),
        (68.65, 81.12, 78.45, 86.64, 81.06, 78.24, 65.02, 79.20, 77.30),
    ),
    'moslora': (
        *('MoSLoRA r = 64', 'moslora', _D2MORA),
        (68.64, 82.05, 77.52, 87.66, 80.61, 81.62, 67.36, 79.42, 78.11),
    ),
    'moelora_8': (
        *('MOELoRA, 8 experts, r = 8', '', _D2MORA),
        (70.26, 82.15, 78.81, 86.23, 80.96, 82.81, 65.15, 78.20, 78.07),
    ),
    'hydralora': (
        *('HydraLoRA, 8 heads, r = 12', 'hydralora', _D2MORA),
        (69.52, 82.81, 78.56, 87.82, 80.58, 81.29, 67.28, 79.80, 78.46),
    ),
    'd2mora': (
        *('D²MoRA, 3 × 8 experts, r = 8', 'd2mora', _D2MORA),
        (70.40, 82.26, 78.76, 87.72, 81.53, 84.01, 70.65, 78.80, 79.27),
    ),
    'd2mora_r16': (
        *('D²MoRA, 4 × 3 experts, r = 16', '', _D2MORA),
        (71.31, 82.86, 78.40, 90.11, 81.68, 83.38, 67.06, 81.00, 79.48),
    ),
    'lora_r32': (
        *('LoRA r = 32', '', _DORA),
        (69.8, 79.9, 79.5, 83.6, 82.6, 79.8, 64.7, 81.0, 77.6),
    ),
    'dora_r32': (
        *('DoRA r = 32', '', _DORA),
        (71.8, 83.7, 76.0, 89.1, 82.6, 83.7, 68.2, 82.4, 79.7),
    ),
}
_MATH_ROWS = {
    'lora': ('LoRA r = 32', 'lora', _LLM_ADAPTERS, (37.5, 18.9, 79.0, 52.1, 46.9)),
    'series': ('series adapter', '', _LLM_ADAPTERS, (33.3, 15.0, 77.7, 52.3, 44.6)),
    'parallel': ('parallel adapter', '', _LLM_ADAPTERS, (35.3, 18.1, 82.4, 49.6, 46.4)),
    'prefix': ('prefix tuning', '', _LLM_ADAPTERS, (24.4, 14.2, 63.4, 38.1, 35.0)),
}
_CODE_ROWS = {
    'flylora': ('FlyLoRA', 'flylora', _COMOL, (20.18, 20.18)),
    'hydralora': ('HydraLoRA', 'hydralora', _COMOL, (46.89, 46.89)),
    'comol': ('CoMoL r = 16', 'comol', _COMOL, (48.11, 48.11)),
}


def _table(
    title: str,
    base: str,
    tasks: tuple[str, ...],
    rows: Mapping[str, tuple[str, str, str, tuple[float, ...]]],
) -> PublishedTable:
    return PublishedTable(
        title,
        tasks,
        {
            name: PaperRow(
                label,
                average,
                method,
                dict(zip(tasks, scores, strict=True)),
                single_task=len(tasks) == 1,
                source=f'published ({source})',
            )
            for name, (label, method, source, (*scores, average)) in rows.items()
        },
        base,
    )


PUBLISHED_TABLES = {
    'commonsense': _table(
        'Commonsense reasoning, trained on commonsense_170k',
        'LLaMA-2 7B',
        _COMMONSENSE,
        _COMMONSENSE_ROWS,
    ),
    'math': _table(
        'Mathematical problems; the published rows are trained on math_10k',
        'LLaMA 7B',
        _MATH,
        _MATH_ROWS,
    ),
    'code': _table(
        'Code generation, trained on CodeAlpaca-20k', 'Qwen3-8B', ('humaneval',), _CODE_ROWS
    ),
}
# All tables that `experiments.analyze --table` knows.
TABLES: Mapping[str, PaperTable] = {**PAPER_TABLES, **PUBLISHED_TABLES}
