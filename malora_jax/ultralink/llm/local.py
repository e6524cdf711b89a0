"""A language model in this process: a trained model, or the base model of a config."""

import importlib.util
import pathlib
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from malora_jax import commands, data, inference
from malora_jax.data.templates import ChatTemplate
from malora_jax.errors import UserError
from malora_jax.export.fingerprints import base_fingerprint
from malora_jax.inference import LanguageModel
from malora_jax.models import Decoder
from malora_jax.models.engine import GenerationRequest as EngineRequest
from malora_jax.models.loading.base_model import load_base
from malora_jax.serving import response_json
from malora_jax.serving.errors import ApiError
from malora_jax.serving.scheduler import Scheduler
from malora_jax.training.config import run_config
from malora_jax.ultralink.llm.cache import LOCAL
from malora_jax.ultralink.llm.chat import ChatMessage, ModelRequest, Reply
from malora_jax.ultralink.llm.usage import TokenUsage


class LocalModel:
    """A local model that serves requests with continuous batching.

    Attributes:
        name: Name of the model, with a fingerprint of its weights.
    """

    def __init__(self, model: LanguageModel, num_slots: int):
        """Start the threads that generate replies.

        Args:
            model: Model that generates the replies.
            num_slots: Number of replies that are decoded together (cache slots).
        """
        fingerprint = base_fingerprint(model.variables)
        self.name = f'{LOCAL}{model.name}:{fingerprint[:12]}'
        self._model = model
        # No limit is needed here, because the stage limits the number of concurrent requests.
        self._scheduler = Scheduler({self.name: model}, num_slots, max_waiting=1 << 30)
        self._scheduler.start()

    async def close(self) -> None:
        """Stop the threads that generate replies."""
        self._scheduler.stop()

    async def complete(self, request: ModelRequest) -> Reply:
        """Return the reply to a request.

        If the prompt fills the model's context, so that no token can be generated, the reply is
        empty and has the finish reason 'refused'.

        Raises:
            OSError: The model failed.
        """
        prompt, sampling = self._prompt(request.messages), request.sampling
        max_new_tokens = self._model.model.config.context - len(prompt)
        if max_new_tokens < 1:
            return Reply('', 'refused', 0)
        generation = self._scheduler.reserve(self.name, 1)
        engine_request = EngineRequest(
            prompt,
            min(sampling.max_tokens, max_new_tokens),
            sampling.temperature,
            top_p=sampling.top_p,
            key=jax.random.key(request.sampling_seed),
        )
        try:
            self._scheduler.submit(generation.texts[0], engine_request, ())
            (generated,) = await response_json.collect_texts(generation)
        except ApiError as error:
            raise OSError(f'The model {self._model.name} failed; see above.') from error
        finally:
            self._scheduler.cancel(generation)
        usage = TokenUsage(len(prompt), len(generated.tokens))
        reason = generated.finish_reason or 'stop'
        return Reply(generated.text.strip(), reason, usage.total, usage)

    def _prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the prompt tokens of a chat.

        Only a chat template has a place for a system message. With any other template, the text of
        the system message is prepended to the first user message.
        """
        if isinstance(self._model.template, ChatTemplate):
            return self._model.encode_prompt([message._asdict() for message in messages])
        first, *rest = messages
        if first.role == 'system':
            rest[0] = ChatMessage(rest[0].role, f'{first.content}\n\n{rest[0].content}')
            messages = rest
        return self._model.encode_prompt([message._asdict() for message in messages])


def load_model(source: str) -> LanguageModel:
    """Load a trained model, or the base model of a config.

    Args:
        source: Directory of a run or of an exported adapter; or configs/NAME.py[:METHOD] for the
            base model of that config. The base model's own chat template is used, or the config's
            template if the base model has none.

    Raises:
        UserError: The directory or config does not exist, or cannot be loaded.
    """
    if pathlib.Path(source).expanduser().is_dir():
        return inference.load(source)
    run = run_config(_config(source).to_dict())
    base = load_base(run.model, run.weights)
    template = data.get_template('chat' if base.tokenizer.chat_template else run.data.template)
    variables = {'params': base.params}
    return LanguageModel(
        run.model.name,
        Decoder(run.model, attention=run.attention),
        variables,
        base.tokenizer,
        template,
    )


def _config(source: str) -> ConfigDict:
    """Call the function `get_config` of a config file, and return the config.

    Args:
        source: Path of the file. It may end with a colon and an argument of `get_config`, such as
            the method.

    Raises:
        UserError: There is no such file, or it does not define `get_config`.
    """
    path, _, argument = source.partition(':')
    path = commands.find_config(path)
    if not (path.endswith('.py') and pathlib.Path(path).is_file()):
        raise UserError(
            f'--llm=local:{source}: this is neither a run directory nor a config file such as '
            'configs/quickstart.py.'
        )
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f'--llm=local:{source}: the file is not valid Python: {error}.') from error
    if not hasattr(module, 'get_config'):
        raise UserError(f'--llm=local:{source}: the file defines no function get_config.')
    return module.get_config(argument) if argument else module.get_config()
