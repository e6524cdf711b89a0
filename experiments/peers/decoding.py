"""Time the decoding of one text by our engine and by llama.cpp, interleaved on the same weights.

Both decode the same number of tokens after the same prompt, greedily, with a KV cache, on as many
threads as the process may use cores. llama.cpp gets the preset's weights as float16 and as float32,
dequantized into GGUF files of their own; ours are float32. Prints a table in Markdown. Needs the
package `xllamacpp`; see experiments/peers/README.md.

Example:
    python -m experiments.peers.decoding --new_tokens=128 --turns=5
"""

import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence

import gguf
import numpy as np
from absl import flags

from experiments import cli
from malora_jax import errors, markdown
from malora_jax.models import Decoder, preset
from malora_jax.models.engine import Engine, GenerationRequest
from malora_jax.models.loading.base_model import LoadedBase, find_weights, load_base

_MODEL = flags.DEFINE_string(
    'model', 'smollm2-135m', 'Name of a model preset whose weights are a GGUF file.'
)
_PROMPT = flags.DEFINE_string('prompt', 'Once upon a time', 'Prompt that each system continues.')
_NEW_TOKENS = flags.DEFINE_integer(
    'new_tokens', 128, 'Number of tokens that each system decodes per round.', lower_bound=16
)
_TURNS = flags.DEFINE_integer(
    'turns', 5, 'Number of rounds, in each of which every system decodes once.', lower_bound=1
)

# Values of `general.file_type` in a GGUF file's metadata.
_FILE_TYPES = {'float32': 0, 'float16': 1}

# A function that decodes once, and returns the text and the tokens per second without prefill.
DecodeFunction = Callable[[], tuple[str, float]]


def main() -> None:
    """Time all systems, and print the table.

    Raises:
        UserError: The weights of --model are no GGUF file.
    """
    config = preset(_MODEL.value)
    path = find_weights(config, '')
    if path.suffix != '.gguf':
        raise errors.out_of_range('--model', _MODEL.value, 'one whose weights are a GGUF file')
    with tempfile.TemporaryDirectory() as directory:
        decoders: dict[str, DecodeFunction] = {'ours, float32': _our_decoder(load_base(config))}
        for dtype in _FILE_TYPES:
            file = pathlib.Path(directory) / f'{dtype}.gguf'
            _write_dequantized(path, file, dtype)
            decoders[f'llama.cpp, {dtype}'] = _llama_cpp(file)
        for turn in decoders.values():  # Warm-up: compiles, and allocates all memory.
            turn()
        found = [{name: turn() for name, turn in decoders.items()} for _ in range(_TURNS.value)]
    print(_table({name: [each[name] for each in found] for name in decoders}))


def _our_decoder(base: LoadedBase) -> DecodeFunction:
    model, variables = Decoder(base.config), {'params': base.params}
    prompt = base.tokenizer.encode(_PROMPT.value)

    def decode() -> tuple[str, float]:
        engine = Engine(model, variables, end_ids=[], num_slots=1)
        engine.submit(GenerationRequest(prompt, _NEW_TOKENS.value))
        # The first step includes the prefill, so it is not timed.
        ids = [token.id for token in engine.step()[0].tokens]
        first, began = len(ids), time.perf_counter()
        while not engine.is_idle:
            ids += [token.id for output in engine.step() for token in output.tokens]
        rate = (len(ids) - first) / (time.perf_counter() - began)
        return base.tokenizer.decode(ids), rate

    return decode


def _llama_cpp(path: pathlib.Path) -> DecodeFunction:
    try:
        import xllamacpp
    except ModuleNotFoundError as error:
        raise errors.UserError('xllamacpp is not installed: run pip install xllamacpp.') from error
    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity = str(path), -1
    params.n_ctx, params.n_parallel = 2048, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    server = xllamacpp.Server(params)

    def decode() -> tuple[str, float]:
        request = {
            'prompt': _PROMPT.value,
            'max_tokens': _NEW_TOKENS.value,
            'temperature': 0,
            'ignore_eos': True,
        }
        answer = server.handle_completions(request)
        return answer['choices'][0]['text'], answer['timings']['predicted_per_second']

    return decode


def _write_dequantized(source: pathlib.Path, target: pathlib.Path, dtype: str) -> None:
    """Write a GGUF file with the same metadata and tensors, dequantized; vectors stay in float32.

    Args:
        source: GGUF file to read.
        target: GGUF file to write.
        dtype: Data type of the matrices, 'float32' or 'float16'.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields['general.architecture'].contents())
    for field in reader.fields.values():
        # The writer itself creates the fields that describe the file's layout.
        if field.name == 'general.architecture' or field.name.startswith('GGUF.'):
            continue
        value = field.contents()
        if field.name == 'general.file_type':
            value = _FILE_TYPES[dtype]
        of_items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], sub_type=of_items)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.astype(dtype) if values.ndim > 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _table(results: dict[str, Sequence[tuple[str, float]]]) -> str:
    ours, *_ = results
    lines = [['', 'tokens/s', 'quartiles', 'ours / peer', 'common prefix with our text']]
    median = float(np.median([rate for _, rate in results[ours]]))
    for name, turns in results.items():
        low, middle, high = np.percentile([rate for _, rate in turns], [25, 50, 75])
        same = _common_prefix_length(results[ours][0][0], turns[0][0])
        lines.append(
            [
                name,
                f'{middle:.1f}',
                f'{low:.1f}–{high:.1f}',
                f'{median / middle:.2f}',
                f'{same} of {len(turns[0][0])} characters',
            ]
        )
    return markdown.table(lines)


def _common_prefix_length(ours: str, theirs: str) -> int:
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


if __name__ == '__main__':
    cli.run_without_config(main)
