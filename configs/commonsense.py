"""Commonsense reasoning: LLaMA-2 7B learns the eight tasks of commonsense_170k jointly.

Commands:
    python -m experiments.prepare --config=configs/commonsense.py
    python -m experiments.train --config=configs/commonsense.py:hydralora \
      --workdir=runs/commonsense/hydralora
    python -m experiments.analyze --workdir=runs/commonsense --table=commonsense
The argument is any method of the table in docs/methods.

Trains on BoolQ, PIQA, Social IQa, HellaSwag, WinoGrande, ARC-Easy, ARC-Challenge and OpenBookQA:
170,420 rows, among them all six sizes of WinoGrande. Scores the whole test sets, or validation sets
where test sets have no labels. The prompts are those of LLM-Adapters (form llm_adapters): the model
writes 'the correct answer is answer3', and the first such word counts. The scores of
lm-evaluation-harness for the same adapter are printed by
    python -m experiments.harness --model_args workdir=runs/commonsense/hydralora \
      --tasks boolq,piqa,social_iqa,hellaswag,winogrande,arc_easy,arc_challenge,openbookqa
or, without training, by
    python -m experiments.evaluate --config=configs/commonsense.py --config.data.form=lm_eval

The recipe is that of D²MoRA (script D2MoRA/llama2_7B_D2MoRA.sh of iLearn-Lab/AAAI26-D2MoRA):
learning rate 3e-4, linear decay after 100 steps of warm-up, 4 epochs, 16 examples per step, at most
256 tokens per example, q, k and v adapted, α = 2 · rank, dropout 0.05, no weight decay. The ranks
of lora, dora, moslora, hydralora and d2mora are those of its table; other methods keep their own.
DoRA's recipe (NVlabs/DoRA, llama2_7B_DoRA.sh) differs: rank 32, learning rate 2e-4, 3 epochs, and
also up and down adapted.

Differences from both: examples are packed, and a step has 8 rows of 256 tokens, about 16 examples.
The loss is that of the answers; theirs includes the prompts. Decoding is greedy; theirs has four
beams. Their training prompt has a few more spaces than their scoring prompt, which is used here for
both. They keep the checkpoint with the lowest loss on 2,000 (D²MoRA) or 120 (DoRA) held-out rows.

Published averages (%) for LLaMA-2 7B: LoRA r = 64 76.02, DoRA 77.30, MoSLoRA 78.11, HydraLoRA
78.46, D²MoRA 79.27 (README of D²MoRA); LoRA r = 32 77.6, DoRA 79.7 (README of DoRA).

Hardware: one GPU or TPU with 24 GB for bfloat16 weights. Not yet run at this size, so there are no
measured times or scores. configs/commonsense_small.py is a version for two CPU cores.
"""

from ml_collections import ConfigDict

from configs import paper

TRAINING_DATA = (
    *('boolq', 'piqa', 'siqa', 'hellaswag', 'winogrande_six', 'arc_easy', 'arc_challenge'),
    'openbookqa',
)
TASKS = (
    *('boolq', 'piqa', 'siqa', 'hellaswag', 'winogrande', 'arc_easy', 'arc_challenge'),
    'openbookqa',
)
# Rank of one expert and rank of the shared subspace, by method.
RANKS = {
    'lora': (64, 0),
    'dora': (64, 0),
    'moslora': (64, 64),
    'hydralora': (12, 12),
    'd2mora': (8, 0),
}


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the method named by `arg`."""
    config = paper.paper_config(arg)
    if arg in RANKS:
        config.adapter.rank, config.adapter.shared_rank = RANKS[arg]
    config.adapter.targets = ('q', 'k', 'v')
    config.adapter.dropout = 0.05
    config.data.form = 'llm_adapters'
    config.data.tasks = TRAINING_DATA
    config.evaluation.tasks = TASKS
    config.data.max_per_task = 0
    config.data.size_exponent = 1.0
    config.data.sequence_length = 256
    config.data.batch_size = 8
    config.optimizer.learning_rate = 3e-4
    config.optimizer.schedule = 'linear'
    config.optimizer.warmup_ratio = 0.0025
    config.optimizer.weight_decay = 0.0
    config.training.epochs = 4.0
    return config
