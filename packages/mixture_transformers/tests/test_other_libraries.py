"""Libraries on top of transformers, which must accept the models as they are."""

import math

import pytest
import torch
from tiny_models import random_model, token_ids, write_adapter, write_base


def test_trl_trains_a_model(tmp_path, tokenizer):
    trl = pytest.importorskip('trl')
    datasets = pytest.importorskip('datasets')
    model = random_model('Llama')
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.endswith(('.down.weight', '.router.weight', '.up.weight'))
    texts = [tokenizer.decode(token_ids(12, seed=seed)) for seed in range(8)]
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            bf16=True,
            use_cpu=True,
            report_to='none',
            logging_steps=1,
            save_strategy='no',
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict({'text': texts}),
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [entry['loss'] for entry in trainer.state.log_history if 'loss' in entry]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_lm_eval_scores_an_adapter_alone(tmp_path, tokenizer):
    pytest.importorskip('lm_eval')
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = random_model('Qwen3')
    write_base(model, tmp_path / 'base')
    write_adapter(model, tmp_path / 'adapter')
    tokenizer.save_pretrained(tmp_path / 'adapter')
    evaluated = HFLM(pretrained=str(tmp_path / 'adapter'), device='cpu', batch_size=2)
    pairs = [('w3 w4 w5', ' w6 w7'), ('w9', ' w20'), ('w30 w40', ' w50')]
    requests = [
        Instance(request_type='loglikelihood', doc={}, arguments=pair, idx=index)
        for index, pair in enumerate(pairs)
    ]
    scores = evaluated.loglikelihood(requests, disable_tqdm=True)
    for (context, answer), (score, _) in zip(pairs, scores, strict=True):
        ids = tokenizer(context + answer, return_tensors='pt')['input_ids']
        log_probabilities = model(ids).logits.log_softmax(-1)[0, :-1]
        picked = log_probabilities.gather(1, ids[0, 1:, None])[-len(answer.split()) :]
        assert score == pytest.approx(picked.sum().item(), rel=1e-4)
