"""Table 2 of the paper: LLaMA-2 7B learns five commonsense tasks jointly.

    LoRA     78.48    lora
    AsyLoRA  79.42    asylora
    DoRA     79.56    dora
    MoLoRA   79.69    molora
    MALoRA   80.47    malora, β 1.25

These are averages over PIQA, OpenBookQA, BoolQ, ARC-C and ARC-E in %. After the runs
    python -m experiments.analyze --workdir=runs/table2 --table=table2
prints our results next to them. --config.base=configs/intra_domain_small.py makes the same
comparisons on two CPU cores.

Not stated in the paper, and chosen here (configs/intra_domain.py and configs/paper.py say why):
- sequence length: 512 tokens, packed;
- schedule: cosine to zero after the warm-up;
- batch size: the paper has 2 examples per step; here a step is one packed row of about 7 examples;
- sampling weights of the tasks: by their sizes, as if all examples were shuffled together;
- number of runs for each row: three seeds.
MALoRA-Small, whose α is not stated either, is not in this table.

Hardware: 5 runs for each seed, each as in configs/intra_domain.py. Not yet run at this size.
"""

from ml_collections import ConfigDict

METHODS = ('lora', 'asylora', 'dora', 'molora', 'malora')


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    config = ConfigDict()
    config.base = 'configs/intra_domain.py'
    config.seeds = (0, 1, 2)
    config.runs = {method: {'arg': method} for method in METHODS}
    config.report = {'table': 'table2'}
    return config
