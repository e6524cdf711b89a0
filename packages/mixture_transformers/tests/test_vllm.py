"""An engine of vLLM, which needs vLLM and the installed package."""

import pytest
import torch
from tiny_models import mixture_block, random_model, token_ids
from torch import nn

from mixture_transformers.layers import MixtureLinear
from mixture_transformers.schema import parse_mixture

pytest.importorskip('vllm', minversion='0.28')

NEW_TOKENS = 16
PROMPT_LENGTHS = (7, 3, 11)


@pytest.fixture(scope='module')
def model():
    # vLLM's attention on CPUs has kernels for heads of 32 channels.
    return random_model('Llama', head_dim=32, eos_token_id=None)


@pytest.fixture
def start_engine(tmp_path, model):
    """Function that serves the model."""
    from vllm import LLM

    model.save_pretrained(tmp_path)
    return lambda **options: LLM(
        str(tmp_path),
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=64,
        max_num_seqs=4,
        num_gpu_blocks_override=64,
        **options,
    )


def test_an_engine_gives_the_tokens_of_transformers(start_engine, model):
    from vllm import SamplingParams

    prompts = [token_ids(1, length, seed=length) for length in PROMPT_LENGTHS]
    expected = [
        model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS)[0, ids.shape[1] :].tolist()
        for ids in prompts
    ]
    outputs = start_engine(dtype='float32').generate(
        [{'prompt_token_ids': ids[0].tolist()} for ids in prompts],
        SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert len({token for tokens in expected for token in tokens}) > 10


def test_an_engine_in_bfloat16_keeps_its_routers(start_engine, model):
    (served,) = start_engine(dtype='bfloat16').apply_model(lambda served: served.state_dict())
    routers = {name: tensor for name, tensor in model.state_dict().items() if 'router' in name}
    assert routers.keys() == {name for name in served if 'router' in name}
    for name, tensor in routers.items():
        assert served[name].dtype == torch.float32 and torch.equal(served[name], tensor), name
    assert served['model.layers.0.self_attn.o_proj.up.weight'].dtype == torch.bfloat16


def test_an_engine_refuses_to_split_routers(start_engine):
    with pytest.raises(ValueError, match='The mixture adapts o_proj and down_proj, and vLLM'):
        start_engine(tensor_parallel_size=2)


def test_no_parts_of_a_linear_layer_are_merged():
    from vllm.model_executor.models.transformers.fuser import get_fusers

    linear = nn.Linear(16, 12, bias=False)
    assert not get_fusers(MixtureLinear(linear, parse_mixture(mixture_block())))
