"""Sweeps as data: what to run, how often, and what to report.

    python -m experiments.sweep --config=configs/sweeps/rank.py --workdir=runs/rank

A sweep is a config. These fields are required:
    base: config file from which all runs start, such as 'configs/inter_domain.py';
    seeds: random seeds; every run is repeated with each of them;
    runs: for each run name, `arg` (the argument of the base config file) and, optionally,
        `overrides` by section.
Optional fields, to sweep over the values of other config fields:
    grid: by section and field, a tuple of values; every combination is a run;
    zip: by section and field, a tuple of values; the fields change together, so the first run has
        the first value of every field, the second run the second value, and so on;
    random: random search: `draws`, the number of points, `seed`, the random seed, and `fields`: by
        section and field, a tuple to choose from or {'low', 'high', 'scale': 'linear' or 'log'}.
Other optional fields:
    subspace_share: dependence of the size d of MALoRA's shared subspace (adapter.shared_rank) on
        the swept rank and number N of experts. With 0.0, every run keeps its config's d. A
        positive number is the paper's λ. The swept adapter.rank is then MoLoRA's rank r, from which
        a MALoRA run computes its own rank r̄ = (2 − λ) r and d = λ r N. A sweep over adapter.rank
        or adapter.num_experts must set this field if its runs have a shared subspace, unless it
        also sweeps adapter.shared_rank;
    report: `table`, the paper's table whose numbers are shown next to the results; `plots`, the
        swept fields on the x axes of the plots (by default all numeric fields that change);
        `metrics`, any of 'score' and 'loss'.

A run is named NAME-FIELDvalue-seedN, and has a directory of that name in the workdir.
"""
