"""The section `training` of a config: the training loop, and what the adapter starts from."""

import dataclasses

from malora_jax import errors
from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.structures import IndependentExperts
from malora_jax.models.decoder import REMAT_POLICIES
from malora_jax.training.checks import check_field, check_min

# Initial routers of experts that start from several LoRAs.
ROUTER_STARTS = ('random', 'arrow', 'tasks')


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings of the training loop: its length, checkpoints, memory use and early stopping.

    Attributes:
        steps: Number of optimizer steps; 0 = computed from `epochs`.
        epochs: Number of epochs; 0 = set by `steps`. In one epoch, as many examples are drawn as
            all tasks have together. Before training, the examples are packed into rows as in
            training, to count how many steps the epochs need.
        checkpoint_every: Number of steps between checkpoints. Another one is saved at the end.
        keep_checkpoints: Number of newest checkpoints to keep, in addition to the best one.
        accumulate: Gradient accumulation: number of micro-batches of `data.batch_size` rows per
            optimizer step.
        remat: Rematerialization (gradient checkpointing), which recomputes activations in the
            backward pass instead of saving them. 'light' recomputes those between linear layers,
            'full' all activations of a transformer layer, 'none' nothing.
        evaluate_every: Number of steps between evaluations of the validation loss; 0 = never. The
            checkpoint with the lowest validation loss is kept, and scored at the end.
        patience: Early stopping: number of consecutive evaluations without a lower validation loss
            after which the run ends; 0 = no early stopping.
        start_from: Directory of an exported adapter, or of a LoRA saved by `peft`, whose values
            initialize the adapter; '' = random initialization. A mixture that is initialized from a
            LoRA computes the same update as the LoRA at first. Several directories of LoRAs,
            separated by commas, initialize one expert each, in the order of the experts.
        router_start: Initial routers of experts that start from several LoRAs, one of
            `ROUTER_STARTS`: 'random'; 'arrow', for each expert the direction of the inputs that its
            LoRA changes most (Arrow, arXiv 2405.11157); or 'tasks', such that the tokens of the
            i-th task choose the i-th expert.
        skip_nonfinite: Maximum number of consecutive steps that are skipped because their loss or
            gradient is not finite. The run stops at the next such step.

    Raises:
        UserError: A value has the wrong type, is out of range, or contradicts another value.
    """

    steps: int
    checkpoint_every: int
    keep_checkpoints: int
    accumulate: int = 1
    remat: str = 'light'
    evaluate_every: int = 0
    patience: int = 0
    epochs: float = 0.0
    start_from: str = ''
    router_start: str = 'random'
    skip_nonfinite: int = 0

    def __post_init__(self):
        errors.check_types('training', self)
        check_min(1, 'training', self, 'checkpoint_every', 'keep_checkpoints', 'accumulate')
        counts = ('steps', 'epochs', 'evaluate_every', 'patience', 'skip_nonfinite')
        check_min(0, 'training', self, *counts)
        if self.remat not in REMAT_POLICIES:
            raise errors.unknown_name('training.remat', self.remat, REMAT_POLICIES)
        if self.router_start not in ROUTER_STARTS:
            raise errors.unknown_name('training.router_start', self.router_start, ROUTER_STARTS)
        check_field(
            (self.steps > 0) != (self.epochs > 0),
            'training.steps',
            self.steps,
            f'at least 1 if training.epochs is 0, otherwise 0 (training.epochs is {self.epochs})',
        )
        check_field(
            self.patience == 0 or self.evaluate_every > 0,
            'training.patience',
            self.patience,
            '0 if training.evaluate_every is 0',
        )

    @property
    def start_directories(self) -> tuple[str, ...]:
        """Directories of `start_from`."""
        return tuple(each.strip() for each in self.start_from.split(',')) if self.start_from else ()

    def check_start(self, adapter: AdapterConfig, num_tasks: int) -> None:
        """Check that the run's adapter can start as `start_from` and `router_start` describe.

        Args:
            adapter: Adapter configuration of the run.
            num_tasks: Number of tasks that are trained on.

        Raises:
            UserError: `start_from` names several LoRAs and the adapter has no expert for each of
                them; or a setting needs LoRAs, and there are none.
        """
        directories, structure = self.start_directories, adapter.structure
        check_field(
            all(directories), 'training.start_from', self.start_from, 'directories between commas'
        )
        has_loras = len(directories) > 1
        if has_loras and not (type(structure) is IndependentExperts and adapter.has_router):
            raise errors.UserError(
                f'training.start_from names {len(directories)} LoRAs; they become the experts of a '
                "mixture with separate down- and up-projections: choose 'molora' or a method of "
                f'its structure, with adapter.num_experts={len(directories)}.'
            )
        check_field(
            not has_loras or adapter.num_experts == len(directories),
            'adapter.num_experts',
            adapter.num_experts,
            f'{len(directories)}, the number of LoRAs in training.start_from',
        )
        check_field(
            not (has_loras and adapter.experts_per_layer),
            'adapter.experts_per_layer',
            adapter.experts_per_layer,
            '() if training.start_from names several LoRAs, each of which adapts all layers',
        )
        check_field(
            self.router_start != 'arrow' or (has_loras and adapter.router.scores == 'absolute'),
            'training.router_start',
            self.router_start,
            "'random' unless training.start_from names several LoRAs and adapter.scores is "
            "'absolute': the sign of a direction is arbitrary",
        )
        check_field(
            self.router_start != 'tasks'
            or (
                has_loras
                and adapter.router.scores == 'softmax'
                and num_tasks == adapter.num_experts
            ),
            'training.router_start',
            self.router_start,
            "'random' unless training.start_from names a LoRA for each task that is trained on, in "
            "the same order, and adapter.scores is 'softmax'",
        )
        starts_at_zero = type(structure) is IndependentExperts and not self.start_from
        last = structure.factors[-1]
        check_field(
            not (starts_at_zero and last in adapter.frozen),
            'adapter.frozen',
            adapter.frozen,
            f'without {last!r}, which starts at zero unless training.start_from names trained '
            'adapters',
        )
