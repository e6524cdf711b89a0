"""Sweeps as data: what to run, how often, and what to report.

    python -m experiments.sweep --config=configs/sweeps/rank.py --workdir=runs/rank

A sweep is a config with the fields
    base: config file from which all runs start, such as 'configs/inter_domain.py';
    seeds: random seeds; every run is repeated with each of them;
    runs: for each run name, `arg` (the argument of the base config file) and, optionally,
        `overrides` by section;
and, to sweep over the values of some fields, any of
    grid: by section and field, a tuple of values; every combination is a run;
    zip: by section and field, a tuple of values; the first value of each field makes one run, the
        second value of each field the next, and so on;
    random: random search: `draws`, the number of points, `seed`, the random seed, and `fields`: by
        section and field, a tuple to choose from or {'low', 'high', 'scale': 'linear' or 'log'};
    subspace_share: λ, if the subspace of MALoRA follows the rank: adapter.rank is then r, as in
        MoLoRA, and a run gets r̄ = (2 − λ) r and d = λ r N; 0.0 if d is fixed. Required if
        adapter.rank or num_experts changes for runs that have a subspace;
    report: `table`, the paper's table whose numbers are shown next to the results; `plots`, fields
        to plot against (by default all numeric fields that change); `metrics`, any of 'score' and
        'loss'.

A run is named NAME-FIELDvalue-seedN, and has a directory of that name in the workdir.
"""
