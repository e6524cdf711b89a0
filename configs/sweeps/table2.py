"""Table 2 of the paper: five tasks of common sense learnt at once by LLaMA-2 7B.

    LoRA     78.48    lora
    AsyLoRA  79.42    asylora
    DoRA     79.56    dora
    MoLoRA   79.69    molora
    MALoRA   80.47    malora, β 1.25

Averages over PIQA, OpenBookQA, BoolQ, ARC-C and ARC-E in %. After the runs
    python -m experiments.analyze --workdir=runs/table2 --table=table2
prints ours beside them. With --config.base=configs/intra_domain_small.py these are the same
comparisons for two CPU cores.

The paper leaves open, and here is (configs/intra_domain.py and configs/paper.py say why):
- sequence length: 512 tokens, packed;
- schedule: cosine to zero after the warm-up;
- the batch: 2 on one A100 is a whole step; a step is one packed row, 7 examples or so;
- the blend of the tasks: by their sizes, as when all rows are shuffled together;
- how often each row was run: three seeds.
MALoRA-Small, whose α it leaves open too, is not in this table.

Hardware: 5 runs for each seed, each as in configs/intra_domain.py. Not yet run at this size.
"""

from ml_collections import ConfigDict

METHODS = ('lora', 'asylora', 'dora', 'molora', 'malora')


def get_config() -> ConfigDict:
    """The sweep."""
    config = ConfigDict()
    config.base = 'configs/intra_domain.py'
    config.seeds = (0, 1, 2)
    config.runs = {method: {'arg': method} for method in METHODS}
    config.report = {'table': 'table2'}
    return config
