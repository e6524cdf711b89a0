"""Mathematical problems: LLaMA-2 7B learns from math_14k, and is scored on four test sets.

Commands, after a download of ft-training_set/math_14k.json and dataset/mawps/test.json from
github.com/AGI-Edgerunners/LLM-Adapters:
    python -m experiments.prepare --config=configs/math.py \
      --config.data.sources="('math_14k/train=math_14k.json','mawps/test=test.json')"
    python -m experiments.train --config=configs/math.py:malora --workdir=runs/math/malora
    python -m experiments.analyze --workdir=runs/math --table=math
The argument is any method of the table in docs/methods. Once prepared, both datasets need no entry
in data.sources.

math_14k has solutions by ChatGPT and GPT-4 to training questions of GSM8K and AQuA. GSM8K, AQuA,
MAWPS (238 questions) and SVAMP (all 1,000) are scored in the form of LLM-Adapters: the last number
of a reply counts, within 0.001, and for AQuA the first capital letter from A to E. Our own
extraction of the number or letter is reported next to it. MAWPS is not in the training data, so
that MultiArith, AddSub and SingleEq, which are parts of it, may be scored as well, as CoMoL does:
--config.evaluation.tasks="('gsm8k','svamp','multiarith','addsub','aqua','singleeq')".

The recipe is that of LLM-Adapters (its file math_running_commands, LLaMA-7B-LORA): learning rate
3e-4, linear decay after 100 steps of warm-up, 3 epochs, 16 examples per step, at most 256 tokens
per example, rank 32, α 64, q, k, v, up and down adapted. The rank is that of `lora` here; other
methods keep their own. Differences: as in configs/commonsense.py, with 12 rows of 256 tokens. Here,
a reply has at most 256 tokens, as there.

Published (%): LLaMA-7B with LoRA on math_10k has 37.5 on GSM8K, 18.9 on AQuA, 79.0 on MAWPS and
52.1 on SVAMP (README of LLM-Adapters). math_10k has the training set of MAWPS, too. On math_14k,
CoMoL reports an average of 84.48 over its six test sets for Qwen3-8B (arXiv 2603.00573, from a
summary; we could not open the paper itself). The file math_14k/validation.json in CoMoL's
repository, whose loss may choose its checkpoint, has 486 questions of GSM8K's test set.

Hardware: one GPU or TPU with 24 GB for bfloat16 weights. Not yet run at this size, so there are no
measured times or scores. configs/math_small.py is a version for two CPU cores.
"""

from ml_collections import ConfigDict

from configs import paper
from malora_jax.adapters.config import DEFAULT_TARGETS

TASKS = ('gsm8k', 'aqua', 'mawps', 'svamp')


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the method named by `arg`."""
    config = paper.paper_config(arg)
    if arg == 'lora':
        config.adapter.rank = 32
    config.adapter.targets = tuple(name for name in DEFAULT_TARGETS if name != 'gate')
    config.adapter.dropout = 0.05
    config.data.form = 'llm_adapters'
    config.data.tasks = ('math_14k',)
    config.evaluation.tasks = TASKS
    config.data.max_per_task = 0
    config.data.sequence_length = 256
    config.data.batch_size = 12
    config.optimizer.learning_rate = 3e-4
    config.optimizer.schedule = 'linear'
    config.optimizer.warmup_ratio = 0.04
    config.optimizer.weight_decay = 0.0
    config.training.epochs = 3.0
    return config
