"""Code generation: Qwen3-8B learns from CodeAlpaca-20k, and is scored on HumanEval.

Commands:
    python -m experiments.prepare --config=configs/code.py
    python -m experiments.train --config=configs/code.py:comol --workdir=runs/code/comol
    python -m experiments.analyze --workdir=runs/code --table=code
The argument is any method of the table in docs/methods.

Trains on the 20,022 rows of CodeAlpaca-20k in the template of LLM-Adapters, where the input of a
row has a section of its own. HumanEval is asked with the beginning of the program, and the model
continues it; the program runs in a sandbox. pass@1 is that of one greedy sample, as in CoMoL.
--config.evaluation.samples=10 --config.evaluation.temperature=0.8 estimates pass@10.

The recipe is that of CoMoL (DCDmllm/CoMoL, directory CoMoL/configs/codealpaca20k): learning rate
1e-4, 200 steps of warm-up, 5 epochs, 16 examples per step, at most 500 tokens per example, rank 16,
α equal to the rank, q, k, v, o and down adapted, no weight decay. Its configs are for
Llama-3.1-8B-Instruct; --config.model.name=llama3.1-8b takes that base model. The rank is that of
`lora`, `comol` and `hydralora` here; other methods keep their own.

Differences: the learning rate decays linearly, where CoMoL keeps it constant. Examples are packed
into 4 rows of 512 tokens, about 16 examples. CoMoL's template has no spaces at the start of a line,
and it asks HumanEval in this template, too.

Published pass@1 (%), for Qwen3-8B: CoMoL 48.11, HydraLoRA 46.89, FlyLoRA 20.18 (arXiv 2603.00573,
from a summary; we could not open the paper itself).

Hardware: one GPU or TPU with 40 GB for bfloat16 weights. Not yet run at this size, so there are no
measured times or scores. configs/code_small.py is a version for two CPU cores.
"""

from ml_collections import ConfigDict

from configs import paper
from malora_jax.adapters.config import LINEARS

# Rank of one expert and rank of the shared subspace, by method.
RANKS = {'lora': (16, 0), 'comol': (16, 16), 'hydralora': (16, 16)}


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the method named by `arg`."""
    config = paper.paper_config(arg)
    if arg in RANKS:
        config.adapter.rank, config.adapter.shared_rank = RANKS[arg]
    config.adapter.alpha = config.adapter.get_ref('rank').to_float() * 1.0
    config.adapter.targets = (*LINEARS[:4], LINEARS[-1])  # q, k, v, o and down.
    config.model.name = 'qwen3-8b'
    config.data.form = 'llm_adapters'
    config.data.tasks = ('code_alpaca',)
    config.evaluation.tasks = ('humaneval',)
    config.data.max_per_task = 0
    config.data.sequence_length = 512
    config.data.batch_size = 4
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = 'linear'
    config.optimizer.warmup_ratio = 0.03
    config.optimizer.weight_decay = 0.0
    config.training.epochs = 5.0
    return config
