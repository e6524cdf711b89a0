import datetime
import inspect
import os

import pytest
import torch
import transformers
from packaging.version import Version
from tiny_models import MORE_GATES, mixture_block, random_model, token_ids
from transformers.distributed import DistributedConfig

from mixture_transformers.tensor_parallel import mixture_plan

RELEASE = Version(transformers.__version__).release[:2]


def tensor_parallel_arguments():
    """Return the arguments of `from_pretrained`, which depend on the release of transformers."""
    if 'tp_size' in inspect.signature(DistributedConfig).parameters:
        return {'distributed_config': DistributedConfig(tp_size=2)}
    return {'tp_plan': 'auto'}


def write_logits(rank, directory, ids):
    """Write the logits of a model that is split over two processes."""
    os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2'}
    torch.distributed.init_process_group(
        'gloo',
        init_method=f'file://{directory}/rendezvous',
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, **tensor_parallel_arguments()
    )
    with torch.no_grad():
        logits = model(ids).logits
    layer = model.model.layers[0].self_attn.o_proj
    weights = [part.weight for part in (layer.base, layer.down, layer.router)]
    # Newer releases of transformers split the weights as DTensors.
    widths = [getattr(each, 'to_local', lambda each=each: each)().shape[1] for each in weights]
    torch.save((widths, logits), f'{directory}/{rank}')
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(
    RELEASE == (5, 0),
    reason='the row-wise style of transformers 5.0 passes plain tensors to routers',
)
@pytest.mark.parametrize(
    ('tied', 'gates'),
    [(False, 'softmax'), (True, 'softmax'), *((False, each) for each in MORE_GATES.values())],
    ids=['untied', 'tied', *MORE_GATES],
)
def test_two_processes_compute_the_same_logits(tmp_path, tied, gates):
    # transformers refuses tensor parallelism without it.
    pytest.importorskip('accelerate')
    if tied and RELEASE == (5, 14):
        pytest.skip('transformers 5.14 returns the logits of a tied head twice')
    model = random_model('Llama', mixture_block(gates=gates), tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    ids = token_ids(2, 6)
    # Forked processes need not import transformers again, which takes much longer than the test.
    torch.multiprocessing.start_processes(
        write_logits, (tmp_path, ids), nprocs=2, start_method='fork'
    )
    for rank in range(2):
        widths, logits = torch.load(tmp_path / str(rank))
        assert widths == [model.config.hidden_size // 2] * 3
        torch.testing.assert_close(logits, model(ids).logits.detach(), rtol=1e-4, atol=1e-4)


def test_the_plan_splits_the_parts_of_an_adapted_layer():
    plan = {'*.q_proj': 'colwise', '*.k_proj': 'colwise', '*.o_proj': 'rowwise', 'norm': 'any'}
    assert mixture_plan(plan, mixture_block(targets=['q_proj', 'o_proj'])) == {
        '*.q_proj.base': 'colwise',
        '*.q_proj.up': 'colwise',
        '*.k_proj': 'colwise',
        '*.o_proj.base': 'rowwise',
        '*.o_proj.down': 'rowwise',
        '*.o_proj.router': 'rowwise',
        'norm': 'any',
    }
    assert mixture_plan(plan, None) == plan
