"""Table 1 of the paper: LLaMA-2 7B learns six domains jointly, compared with single-task training.

    base                   37.1
    LoRA (single task)     57.0    lora-TASK, a run for each of the seven columns
    AsyLoRA (single task)  55.7    asylora-TASK
    LoRA                   54.7    lora
    AsyLoRA                54.2    asylora
    DoRA                   54.6    dora
    MoAsyLoRA              51.7    moasylora
    MoLoRA                 55.3    molora
    MALoRA-Small           55.4    malora_small
    MALoRA                 56.3    malora

These are averages in %; malora_jax/runs/paper.py has every cell. After the runs
    python -m experiments.analyze --workdir=runs/table1 --table=table1
prints our results next to them.

Not stated in the paper, and chosen here (configs/inter_domain.py and configs/paper.py say why):
- sequence length: 1,024 tokens, packed;
- schedule: cosine to zero after the warm-up;
- whether the batch size of 4 is per device: here a step has 4 packed rows in total;
- MALoRA-Small's α: 16, twice its rank;
- number of runs for each row: three seeds;
- training data of the single-task runs for ARC-C and ARC-E: Alpaca-GPT4 alone. The experiment does
  not use ARC's own training data; ARC tests what is learned from Alpaca-GPT4. The two runs train on
  the same data and differ only in the task that they score, so that each column has a run.

Hardware: 21 runs for each seed, each as in configs/inter_domain.py. Not yet run at this size.
"""

from ml_collections import ConfigDict

from configs.inter_domain import TRAINING_DATA

METHODS = ('lora', 'asylora', 'dora', 'moasylora', 'molora', 'malora_small', 'malora')


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    config = ConfigDict()
    config.base = 'configs/inter_domain.py'
    config.seeds = (0, 1, 2)
    single_task_runs = {
        f'{method}-{task}': {'arg': f'{method},task={task}'}
        for method in ('lora', 'asylora')
        for task in TRAINING_DATA
    }
    config.runs = single_task_runs | {method: {'arg': method} for method in METHODS}
    config.report = {'table': 'table1'}
    return config
