"""A tiny random Llama with adapters, and an independent float64 implementation of both.

Dimension letters: T tokens, D model width, F outputs, V vocabulary, H query heads, K key-value
heads, C head width, E experts, R rank.
"""

import json
import zlib

import numpy as np
import safetensors.torch
import tokenizers
import torch

VOCABULARY, WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_WIDTH = 96, 128, 192, 2, 4, 2, 32
EPSILON, ROPE_THETA = 1e-5, 10000.0
# Outputs and inputs of each linear layer.
LINEARS = {
    'q_proj': (HEADS * HEAD_WIDTH, WIDTH),
    'k_proj': (KV_HEADS * HEAD_WIDTH, WIDTH),
    'v_proj': (KV_HEADS * HEAD_WIDTH, WIDTH),
    'o_proj': (WIDTH, HEADS * HEAD_WIDTH),
    'gate_proj': (HIDDEN, WIDTH),
    'up_proj': (HIDDEN, WIDTH),
    'down_proj': (WIDTH, HIDDEN),
}
# 'lora' and 'other_lora' are ordinary LoRAs. 'attention' has no layer with split inputs.
ADAPTERS = {
    'lora': {'rank': 8, 'scale': 1.5, 'targets': list(LINEARS)},
    'other_lora': {'rank': 16, 'scale': 0.5, 'targets': ['q_proj', 'down_proj']},
    'softmax': {
        'num_experts': 8,
        'rank': 12,
        'top_k': 2,
        'scale': 2.0,
        'gates': 'softmax',
        'targets': ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'up_proj', 'down_proj'],
        'router_parts': 2,
    },
    'renormalized': {
        'num_experts': 5,
        'rank': 4,
        'top_k': 3,
        'scale': 1.25,
        'gates': 'renormalized',
        'targets': ['gate_proj', 'down_proj'],
        'router_parts': 1,
    },
    'equal': {
        'num_experts': 16,
        'rank': 3,
        'top_k': 4,
        'scale': 3.0,
        'gates': 'equal',
        'targets': list(LINEARS),
        'router_parts': 2,
    },
    'attention': {
        'num_experts': 4,
        'rank': 8,
        'top_k': 1,
        'scale': 2.0,
        'gates': 'softmax',
        'targets': ['q_proj', 'k_proj', 'v_proj'],
        'router_parts': 2,
    },
}
MIXTURES = ('softmax', 'renormalized', 'equal', 'attention')


def is_mixture(name):
    return name in MIXTURES


def _normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def _module(layer, linear):
    parent = 'self_attn' if linear in ('q_proj', 'k_proj', 'v_proj', 'o_proj') else 'mlp'
    return f'model.layers.{layer}.{parent}.{linear}'


def model_tensors():
    """Weights of the base model, by name in its checkpoint."""
    rng = np.random.default_rng(0)
    tensors = {
        'model.embed_tokens.weight': _normal(rng, VOCABULARY, WIDTH),
        'model.norm.weight': 1 + 0.1 * _normal(rng, WIDTH),
        'lm_head.weight': _normal(rng, VOCABULARY, WIDTH) / np.float32(WIDTH**0.5),
    }
    for layer in range(LAYERS):
        for norm in ('input_layernorm', 'post_attention_layernorm'):
            tensors[f'model.layers.{layer}.{norm}.weight'] = 1 + 0.1 * _normal(rng, WIDTH)
        for linear, (outputs, inputs) in LINEARS.items():
            weight = _normal(rng, outputs, inputs) / np.float32(inputs**0.5)
            tensors[f'{_module(layer, linear)}.weight'] = weight
    return tensors


def adapter_tensors(name):
    """A (E, R, D), B (E, F, R) and router (E, D) of each adapted module; a LoRA has no router."""
    settings = ADAPTERS[name]
    experts, rank = settings.get('num_experts', 1), settings['rank']
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    modules = {}
    for layer in range(LAYERS):
        for linear in settings['targets']:
            outputs, inputs = LINEARS[linear]
            modules[_module(layer, linear)] = (
                _normal(rng, experts, rank, inputs) / np.float32(inputs**0.5),
                _normal(rng, experts, outputs, rank) / np.float32(rank**0.5),
                2 * _normal(rng, experts, inputs) / np.float32(inputs**0.5),
            )
    return modules


def write_model(directory):
    """Write config.json, weights and a tokenizer that maps 't7' to 7."""
    config = {
        'architectures': ['LlamaForCausalLM'],
        'model_type': 'llama',
        'vocab_size': VOCABULARY,
        'hidden_size': WIDTH,
        'intermediate_size': HIDDEN,
        'num_hidden_layers': LAYERS,
        'num_attention_heads': HEADS,
        'num_key_value_heads': KV_HEADS,
        'head_dim': HEAD_WIDTH,
        'max_position_embeddings': 128,
        'rms_norm_eps': EPSILON,
        'rope_theta': ROPE_THETA,
        'hidden_act': 'silu',
        'tie_word_embeddings': False,
        'bos_token_id': 0,
        'eos_token_id': 1,
        'dtype': 'float32',
    }
    (directory / 'config.json').write_text(json.dumps(config))
    tensors = {name: torch.from_numpy(array) for name, array in model_tensors().items()}
    safetensors.torch.save_file(tensors, directory / 'model.safetensors', {'format': 'pt'})
    words = {f't{token}': token for token in range(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='t0'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / 'tokenizer.json'))
    (directory / 'tokenizer_config.json').write_text(
        json.dumps({'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': 't0'})
    )


def adapter_config(name):
    settings = dict(ADAPTERS[name])
    config = {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': 'tiny',
        'target_modules': settings['targets'],
        'bias': 'none',
    }
    if not is_mixture(name):
        rank = settings['rank']
        return {**config, 'r': rank, 'lora_alpha': settings['scale'] * rank}
    base = {'name': 'tiny', 'fingerprint': '0123456789abcdef' * 2}
    return {**config, 'mixture': {'version': 1, 'method': 'malora', **settings, 'base': base}}


def factors(name):
    """lora_A and lora_B of each adapted module, as the exporter writes them."""
    parts = ADAPTERS[name].get('router_parts', 0)
    result = {}
    for module, (a_ERD, b_EFR, router_ED) in adapter_tensors(name).items():
        router = torch.from_numpy(router_ED)
        rounded = router.bfloat16().float()
        rows = [torch.from_numpy(a_ERD).flatten(0, 1), rounded, (router - rounded)]
        rows = rows[: parts + 1] if parts != 1 else [rows[0], router]
        b = torch.from_numpy(b_EFR).permute(1, 0, 2).flatten(1)
        zeros = torch.zeros(b.shape[0], parts * router.shape[0])
        result[module] = torch.cat(rows), torch.cat([b, zeros], dim=1)
    return result


def write_adapter(directory, name, change_config=None, change_tensors=None):
    """Write an adapter; the two functions may change its contents in place before."""
    directory.mkdir(parents=True)
    config, tensors = adapter_config(name), {}
    for module, (a, b) in factors(name).items():
        tensors[f'base_model.model.{module}.lora_A.weight'] = a
        tensors[f'base_model.model.{module}.lora_B.weight'] = b
    if change_config:
        change_config(config)
    if change_tensors:
        change_tensors(tensors)
    (directory / 'adapter_config.json').write_text(json.dumps(config))
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, directory / 'adapter_model.safetensors')
    return directory


def gates(logits_TE, top_k, kind):
    """Gates of each token's experts, in float64; zero outside the top k."""
    exponentials = np.exp(logits_TE - logits_TE.max(axis=-1, keepdims=True))
    probabilities_TE = exponentials / exponentials.sum(axis=-1, keepdims=True)
    order = np.argsort(-probabilities_TE, axis=-1, kind='stable')[:, :top_k]
    selected_TE = np.zeros_like(probabilities_TE)
    np.put_along_axis(selected_TE, order, 1.0, axis=-1)
    if kind == 'equal':
        return selected_TE / top_k
    gates_TE = probabilities_TE * selected_TE
    return gates_TE / gates_TE.sum(axis=-1, keepdims=True) if kind == 'renormalized' else gates_TE


def mixture_update(x_TD, a_ERD, b_EFR, gates_TE, scale):
    """scale · Σ_t g_t B_t A_t x, in float64."""
    return scale * np.einsum('te,efr,erd,td->tf', gates_TE, b_EFR, a_ERD, x_TD, optimize=True)


class Reference:
    """The tiny Llama in float64 with one adapter, without a cache or batching."""

    def __init__(self, name=None):
        self._settings = ADAPTERS.get(name)
        self._is_mixture = is_mixture(name)
        self._weights = {key: array.astype(np.float64) for key, array in model_tensors().items()}
        self._adapter = {}
        if name:
            for module, arrays in adapter_tensors(name).items():
                self._adapter[module] = [array.astype(np.float64) for array in arrays]

    def generate(self, prompt, count):
        """Greedy tokens, their log-probabilities, and the smallest lead over another token."""
        tokens, logprobs, leads = list(prompt), [], []
        for _ in range(count):
            logits_V = self._logits(tokens)
            logits_V = logits_V - logits_V.max()
            second, best = np.sort(logits_V)[-2:]
            leads.append(best - second)
            logprobs.append(best - np.log(np.exp(logits_V).sum()))
            tokens.append(int(logits_V.argmax()))
        return tokens[len(prompt) :], logprobs, min(leads)

    def _linear(self, x_TD, layer, linear):
        module = _module(layer, linear)
        y_TF = x_TD @ self._weights[f'{module}.weight'].T
        if module not in self._adapter:
            return y_TF
        a_ERD, b_EFR, router_ED = self._adapter[module]
        gates_TE = np.ones((len(x_TD), 1))
        if self._is_mixture:
            logits_TE = x_TD @ router_ED.T
            gates_TE = gates(logits_TE, self._settings['top_k'], self._settings['gates'])
        return y_TF + mixture_update(x_TD, a_ERD, b_EFR, gates_TE, self._settings['scale'])

    def _norm(self, x_TD, name):
        rms = np.sqrt((x_TD**2).mean(axis=-1, keepdims=True) + EPSILON)
        return x_TD / rms * self._weights[f'{name}.weight']

    def _logits(self, tokens):
        x_TD = self._weights['model.embed_tokens.weight'][tokens]
        for layer in range(LAYERS):
            prefix = f'model.layers.{layer}'
            x_TD = x_TD + self._attention(self._norm(x_TD, f'{prefix}.input_layernorm'), layer)
            h_TD = self._norm(x_TD, f'{prefix}.post_attention_layernorm')
            gate = self._linear(h_TD, layer, 'gate_proj')
            product = gate / (1 + np.exp(-gate)) * self._linear(h_TD, layer, 'up_proj')
            x_TD = x_TD + self._linear(product, layer, 'down_proj')
        return self._norm(x_TD, 'model.norm')[-1] @ self._weights['lm_head.weight'].T

    def _attention(self, x_TD, layer):
        count = len(x_TD)
        q, k, v = (
            self._linear(x_TD, layer, linear).reshape(count, -1, HEAD_WIDTH)
            for linear in ('q_proj', 'k_proj', 'v_proj')
        )
        k, v = (np.repeat(each, HEADS // KV_HEADS, axis=1) for each in (_rotate(k), v))
        scores = np.einsum('thc,shc->hts', _rotate(q), k) / HEAD_WIDTH**0.5
        scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        output = np.einsum('hts,shc->thc', weights, v).reshape(count, -1)
        return self._linear(output, layer, 'o_proj')


def _rotate(x_THC):
    half = HEAD_WIDTH // 2
    frequencies = ROPE_THETA ** (-np.arange(half) / half)
    angles = np.arange(len(x_THC))[:, None, None] * frequencies
    first, second = x_THC[..., :half], x_THC[..., half:]
    return np.concatenate(
        [
            first * np.cos(angles) - second * np.sin(angles),
            second * np.cos(angles) + first * np.sin(angles),
        ],
        axis=-1,
    )
