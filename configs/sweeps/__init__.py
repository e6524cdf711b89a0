"""Sweeps as data: what to run, how often, and what to report.

    python -m experiments.sweep --config=configs/sweeps/rank.py --workdir=runs/rank

A sweep is a config with the fields
    base: config file from which all runs start, such as 'configs/inter_domain.py';
    seeds: random seeds; every run is repeated with each of them;
    runs: for each run name, `arg` (the argument of the base config file) and, optionally,
        `overrides` by section;
and, to sweep over the values of some fields, any of
    grid: by section and field, a tuple of values; every combination is a run;
    zip: by section and field, a tuple of values; the fields change together, so the first run has
        the first value of every field, the second run the second value, and so on;
    random: random search: `draws`, the number of points, `seed`, the random seed, and `fields`: by
        section and field, a tuple to choose from or {'low', 'high', 'scale': 'linear' or 'log'};
    subspace_share: size of MALoRA's shared subspace, if the rank or the number N of experts is
        swept. With 0.0, every run has the same number d of dimensions (adapter.shared_rank). A
        positive number is the paper's λ: d then grows with the rank and with N. In this case, the
        swept adapter.rank is MoLoRA's rank r; a MALoRA run computes its own rank from it,
        r̄ = (2 − λ) r, and its subspace, d = λ r N. Required if adapter.rank or
        adapter.num_experts is swept for runs that have a shared subspace;
    report: `table`, the paper's table whose numbers are shown next to the results; `plots`, the
        swept fields on the x axes of the plots (by default all numeric fields that change);
        `metrics`, any of 'score' and 'loss'.

A run is named NAME-FIELDvalue-seedN, and has a directory of that name in the workdir.
"""
