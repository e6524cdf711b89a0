"""Tables of the MALoRA paper, and assignment of runs to the rows of these tables.

Wang, Zhao, Wang, Wang and Liu, MALoRA: Mixture of Asymmetric Low-Rank Adaptation for Enhanced
Multi-Task Learning, Findings of NAACL 2025. Scores of LLaMA-2 7B in %: ROUGE-L for E2E NLG, pass@1
for HumanEval, accuracy elsewhere.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from malora_jax.adapters import AdapterSettings, method
from malora_jax.adapters.settings import settings_of

BASE_MODEL = 'llama2-7b'
_INTER = ('medmcqa', 'humaneval', 'gsm8k', 'phrasebank', 'arc_challenge', 'arc_easy', 'e2e_nlg')
_INTRA = ('piqa', 'openbookqa', 'boolq', 'arc_challenge', 'arc_easy')


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """A row of a table in the paper.

    Attributes:
        label: Name of the row in the paper.
        average: Average score over the tasks, in %.
        method: Name of the method in this package; '' for the base model.
        scores: Scores by task, in %; empty if this package does not record them.
        settings: Adapter settings that differ from the method's defaults.
        single_task: Whether a separate model was trained on each task.
        printed_average: Average that the paper prints, if it differs from the mean of the printed
            scores; else None.
        source: Label of the row's numbers in reports.
    """

    label: str
    average: float
    method: str = ''
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    single_task: bool = False
    printed_average: float | None = None
    source: str = 'in the paper'

    def adapter_settings(self, **sizes: int) -> dict[str, Any]:
        """Return the complete adapter settings of the row.

        The field `beta` is omitted if it has no effect on the row's adapter.

        Args:
            **sizes: Ranks to use instead of the paper's, such as `rank` and `shared_rank`.
        """
        return _effective_settings(
            dataclasses.asdict(settings_of(method(self.method, **{**self.settings, **sizes})))
        )


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table of scores in the paper.

    Attributes:
        title: Number and subject of the table.
        tasks: Names of the tasks in its columns.
        rows: Rows of the table, by the names that the sweep configs give to their runs.
        base: Name of the base model of the numbers in the table.
        shows_all: Whether reports show the rows without a run, too.
    """

    title: str
    tasks: tuple[str, ...]
    rows: Mapping[str, PaperRow]
    base: str = 'LLaMA-2 7B'
    shows_all: bool = False

    def row_of(self, config: Mapping[str, Any]) -> str | None:
        """Return the name of the row that a run belongs to; None if there is no such row.

        The run must have the method and the adapter settings of the row. There is one exception: a
        run on another base model may have other ranks than the paper, if its method has only one
        row in the table.

        Args:
            config: Raw config of the run.
        """
        adapter = _effective_settings(config['adapter'])
        rows = {
            name: row
            for name, row in self.rows.items()
            if (row.method, row.single_task) == (config['method'], is_single_task(config))
        }
        for name, row in rows.items():
            if row.adapter_settings() == adapter:
                return name
        if config['model']['name'] != BASE_MODEL and len(rows) == 1:
            ((name, row),) = rows.items()
            sizes = {key: adapter[key] for key in ('rank', 'shared_rank')}
            if row.adapter_settings(**sizes) == adapter:
                return name
        return None


def is_single_task(config: Mapping[str, Any]) -> bool:
    """Return whether a run is trained on one task and scored on one.

    Args:
        config: Raw config of the run.
    """
    trained = config['data']['tasks']
    scored = config['evaluation']['tasks'] or trained
    return len(trained) == len(scored) == 1


def _effective_settings(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Return the complete adapter settings; `beta` is omitted where the structure ignores it."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in adapter.items()}
    settings = dataclasses.asdict(AdapterSettings(**values))
    if not settings['shared_rank'] or settings['subspace'] not in ('down', 'own'):
        del settings['beta']
    return settings


# Scores of MedMCQA, HumanEval, GSM8K, PhraseBank, ARC-C, ARC-E and E2E NLG, and their average.
_TABLE_1 = {
    'base': (34.2, 14.6, 13.2, 57.6, 43.1, 75.5, 21.7, 37.1),
    'lora_single': (42.5, 34.8, 36.5, 77.4, 62.4, 79.3, 66.4, 57.0),
    'asylora_single': (42.6, 30.5, 33.1, 78.8, 61.2, 77.4, 66.0, 55.7),
    'lora': (43.2, 34.8, 34.0, 69.6, 59.1, 76.5, 65.9, 54.7),
    'asylora': (43.3, 31.1, 27.6, 74.2, 59.8, 77.8, 65.5, 54.2),
    'dora': (41.3, 32.3, 32.6, 74.0, 60.0, 75.6, 66.5, 54.6),
    'moasylora': (40.6, 24.4, 23.9, 73.0, 58.5, 76.0, 65.8, 51.7),
    'molora': (42.1, 29.3, 33.1, 78.1, 61.1, 78.1, 65.6, 55.3),
    'malora_small': (41.0, 29.9, 34.0, 80.3, 59.4, 77.2, 65.7, 55.4),
    'malora': (42.3, 32.9, 34.1, 79.8, 60.0, 78.5, 66.3, 56.3),
}
# Label and average by method.
_TABLE_3 = {
    'molora': ('MoLoRA', 55.3),
    'molora_r12': ('MoLoRA r = 12', 56.0),
    'molora_same_down': ('same A_t', 56.0),
    'malora': ('MALoRA', 56.3),
    'malora_fixed_shared': ('fixed S_A', 54.3),
    'malora_symmetric': ('w/o asymmetry', 55.8),
    'malora_unshared': ('w/o shared S_A', 53.3),
    'malora_fixed_core': ('w/o fine-tuning P_t', 55.5),
    'malora_shared_up': ('decomposing B_t', 54.8),
}
# Averages by r̄ and d, then by β.
_TABLE_12 = {
    (14, 16): {0.5: 78.80, 1.0: 79.08, 1.25: 79.70, 2.0: 78.95},
    (12, 32): {0.5: 79.64, 1.0: 80.03, 1.25: 80.47, 2.0: 79.24},
    (10, 48): {0.5: 79.48, 1.0: 79.72, 1.25: 80.79, 2.0: 80.50},
    (8, 64): {0.5: 78.43, 1.0: 79.09, 1.25: 78.91, 2.0: 78.97},
}
_LABELS = {
    'base': 'base',
    'lora': 'LoRA',
    'asylora': 'AsyLoRA',
    'dora': 'DoRA',
    'moasylora': 'MoAsyLoRA',
    'molora': 'MoLoRA',
    'malora_small': 'MALoRA-Small',
    'malora': 'MALoRA',
}


def _table1_row(name: str, scores: Mapping[str, float], average: float) -> PaperRow:
    method_name = name.removesuffix('_single')
    single_task = name != method_name
    label = _LABELS[method_name] + (' (single task)' if single_task else '')
    return PaperRow(
        label, average, method_name if name != 'base' else '', scores, single_task=single_task
    )


def _molora(average: float, rank: int, printed_average: float | None = None) -> PaperRow:
    label = f'MoLoRA r = {rank}'
    return PaperRow(
        label, average, 'molora', settings={'rank': rank}, printed_average=printed_average
    )


def _malora(average: float, rank: int, shared_rank: int, beta: float) -> PaperRow:
    label = f'MALoRA r̄ = {rank}, d = {shared_rank}, β {beta:g}'
    settings = {'rank': rank, 'shared_rank': shared_rank, 'beta': beta}
    return PaperRow(label, average, 'malora', settings=settings)


PAPER_TABLES = {
    'table1': PaperTable(
        'Table 1, inter-domain',
        _INTER,
        {
            name: _table1_row(name, dict(zip(_INTER, scores, strict=True)), average)
            for name, (*scores, average) in _TABLE_1.items()
        },
    ),
    'table2': PaperTable(
        'Table 2, intra-domain',
        _INTRA,
        {
            'lora': PaperRow('LoRA', 78.48, 'lora'),
            'asylora': PaperRow('AsyLoRA', 79.42, 'asylora'),
            'dora': PaperRow('DoRA', 79.56, 'dora'),
            'molora': PaperRow('MoLoRA', 79.69, 'molora'),
            'malora': PaperRow('MALoRA', 80.47, 'malora', settings={'beta': 1.25}),
        },
    ),
    'table3': PaperTable(
        'Table 3, ablations',
        _INTER,
        {name: PaperRow(label, average, name) for name, (label, average) in _TABLE_3.items()},
    ),
    'table11': PaperTable(
        'Table 11, robustness to the rank',
        _INTER,
        {
            'molora_r4': _molora(53.12, 4),
            'molora': _molora(55.33, 8),
            'molora_r16': _molora(56.37, 16, printed_average=56.19),
            'molora_r32': _molora(55.74, 32),
            'malora_r6': _malora(54.28, 6, 16, 0.3),
            'malora': _malora(56.27, 12, 32, 1.0),
            'malora_r24': _malora(56.61, 24, 64, 3.5),
            'malora_r48': _malora(56.69, 48, 128, 5.0),
        },
    ),
    'table12': PaperTable(
        'Table 12, ranks and β',
        _INTRA,
        {
            f'malora_d{shared_rank}_beta{round(100 * beta):03}': _malora(
                average, rank, shared_rank, beta
            )
            for (rank, shared_rank), averages in _TABLE_12.items()
            for beta, average in averages.items()
        },
    ),
}
