"""Sweeps as data: what to run, how often, and what to tell of it.

    python -m experiments.sweep --config=configs/sweeps/rank.py --workdir=runs/rank

A sweep is a config with the fields
    base: the config file that its runs start from, such as 'configs/inter_domain.py';
    seeds: every run is made with each of them;
    runs: by name, `arg` for that file, and `overrides` by section where there are any;
and, if runs are to be made at several values of some fields, any of
    grid: by section and field, a tuple of values; every combination is a run;
    zip: the same, with values that go together: the first of each, the second of each;
    random: `draws` points with the seed `seed`; `fields`, by section and field, are a tuple to
        choose from or {'low', 'high', 'scale': 'linear' or 'log'};
    subspace_share: λ, if the subspace of MALoRA follows the rank: adapter.rank is then r, as
        MoLoRA would have it, and a run gets r̄ = (2 − λ) r and d = λ r N; 0.0 = d stays. Must be
        there if adapter.rank or num_experts changes for runs that have a subspace;
    report: `table`, the paper's table whose numbers stand beside ours; `plots`, fields to plot
        against (by default all that change); `metrics`, of 'score' and 'loss'.

A run is named NAME-FIELDvalue-seedN, and has a directory of that name in the workdir.
"""
