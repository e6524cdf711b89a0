import flax.linen as nn
import jax
import pytest
from jax.sharding import PartitionSpec

from malora_jax.adapters import method
from malora_jax.distributed import sharding
from malora_jax.distributed.mesh import MESH_AXES, MeshConfig, make_mesh, use_mesh
from malora_jax.errors import UserError
from malora_jax.models import Decoder, preset
from malora_jax.models.config import PRESETS
from malora_jax.models.decoder import abstract_variables
from tests.helpers.models import METHOD_NAMES, random_variables, small_method, tiny_model


@pytest.mark.parametrize(
    'sizes, devices, shape',
    [
        ({}, 1, (1, 1, 1, 1)),
        ({}, 8, (8, 1, 1, 1)),
        (dict(fsdp=2, tensor=2), 8, (2, 2, 2, 1)),
        (dict(data=2, fsdp=-1), 8, (2, 4, 1, 1)),
        (dict(data=1, expert=4), 4, (1, 1, 1, 4)),
    ],
)
def test_what_is_left_goes_to_one_axis(sizes, devices, shape):
    assert MeshConfig(**sizes).shape(devices) == shape


@pytest.mark.parametrize(
    'sizes, message',
    [
        (
            dict(data=3),
            r'mesh \(data 3, fsdp 1, .*\) does not fit 8 devices: the product of the sizes must',
        ),
        (dict(fsdp=3), 'does not fit 8 devices'),
        (dict(data=4), 'does not fit 8 devices'),
        (dict(fsdp=-1), 'mesh has -1 for several axes'),
        (dict(tensor=0), 'mesh.tensor is 0; it must be at least 1, or -1 for all remaining'),
        (dict(data=-2), 'mesh.data is -2'),
        (dict(data=2.0), 'mesh.data is 2.0; it must be a whole number'),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        MeshConfig(**sizes).shape(8)


@pytest.mark.parametrize(
    'sizes, rows, shape',
    [
        ({}, 4, (4, 1, 1, 1)),
        ({}, 1, (1, 1, 1, 1)),
        ({}, 6, (6, 1, 1, 1)),
        (dict(tensor=2), 4, (4, 1, 2, 1)),
        (dict(data=2, fsdp=-1), 6, (2, 3, 1, 1)),
        (dict(data=1, fsdp=2), 4, (1, 2, 1, 1)),
        (dict(data=1, tensor=-1), 1, (1, 1, 8, 1)),
    ],
)
def test_a_run_takes_the_devices_that_its_rows_can_be_shared_with(sizes, rows, shape):
    """Eight devices are available."""
    assert MeshConfig(**sizes).shape(8, rows) == shape


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    with pytest.raises(UserError, match='does not fit 8 devices'):
        MeshConfig(data=1, fsdp=16).shape(8, rows=16)


def test_another_mesh_is_not_our_business():
    types = (jax.sharding.AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh((1, 1), ('dp', 'mp'), axis_types=types)):
        x = jax.numpy.ones((3, 5))
        assert sharding.constrain(x, 'rows', 'mlp') is x


@pytest.mark.parametrize('remat', ['none', 'light', 'full'])
def test_gathered_kernels_are_not_kept_for_the_backward_pass(remat, capsys):
    """The mesh has a single device but requests sharding like any other."""
    model = tiny_model(small_method('malora')).clone(remat=remat)
    variables = random_variables(model)
    tokens = jax.numpy.ones((2, 40), 'int32')

    def loss(adapter):
        hidden, _ = model.apply({**variables, 'adapter': adapter}, tokens, tokens, tokens)
        return hidden.sum()

    with jax.set_mesh(make_mesh(MeshConfig())):
        jax.ad_checkpoint.print_saved_residuals(loss, variables['adapter'])
    lines = capsys.readouterr().out.splitlines()
    kept = [line for line in lines if 'from the argument' not in line and 'constant' not in line]
    # Shapes of the kernels stacked over the layers; activations have 80 tokens.
    kernels = ('[2,64,64]', '[2,64,32]', '[2,64,96]', '[2,96,64]')
    assert kept
    assert not [line for line in kept if any(shape in line for shape in kernels)]


def test_one_device_needs_no_mesh():
    with use_mesh(MeshConfig(), 3):
        assert not sharding.is_mesh_set()
        x = jax.numpy.ones((3, 5))
        assert sharding.constrain(x, 'rows', 'mlp') is x
        assert sharding.gather(x, ('embed', 'mlp')) is x
        sharding.check_rows_divisible('data.batch_size', 3)


def test_the_table_splits_rows_and_parameters():
    assert sharding.partition_spec(('rows', 'features')) == PartitionSpec(('data', 'fsdp'), None)
    assert sharding.partition_spec(('layers', 'embed', 'mlp')) == PartitionSpec(
        None, 'fsdp', 'tensor'
    )
    gathered = sharding.partition_spec(('embed', 'mlp'), replicated_over=('fsdp',))
    assert gathered == PartitionSpec(None, 'tensor')
    assert {axis for over in sharding.LOGICAL_AXIS_RULES.values() for axis in over} == set(
        MESH_AXES
    )


def test_a_misspelt_or_colliding_axis_raises():
    with pytest.raises(UserError, match="Unknown logical axis 'embd': did you mean embed"):
        sharding.partition_spec(('embd', 'mlp'))
    with pytest.raises(ValueError, match=r"\('rows', 'embed'\) are split over mesh axis 'fsdp'"):
        sharding.partition_spec(('rows', 'embed'))


@pytest.mark.parametrize('name', PRESETS)
def test_every_leaf_of_every_model_has_a_place(name):
    """Every method is checked on the tiny model, and MALoRA on every model."""
    tiny = [small_method(each) for each in METHOD_NAMES]
    for adapter in tiny if name == 'tiny' else [method('malora')]:
        boxed = abstract_variables(Decoder(preset(name), adapter))
        boxed.pop('routing', None)
        for leaf in jax.tree.leaves(boxed, is_leaf=lambda node: isinstance(node, nn.Partitioned)):
            assert len(sharding.partition_spec(leaf.names)) == leaf.value.ndim
            assert leaf.names[0] == 'layers' or leaf.value.ndim <= 2


def test_an_axis_that_does_not_divide_is_named():
    mesh = make_mesh(MeshConfig())
    uneven = jax.sharding.AbstractMesh((1, 5, 1, 1), MESH_AXES)
    boxed = {
        'layers': {
            'q': nn.LogicallyPartitioned(
                jax.ShapeDtypeStruct((64, 96), 'float32'), ('embed', 'heads')
            )
        }
    }
    with jax.set_mesh(mesh):
        assert sharding.shardings(boxed)['layers']['q'].spec == PartitionSpec('fsdp', 'tensor')
    path = (jax.tree_util.DictKey('layers'), jax.tree_util.DictKey('q'))
    message = 'mesh: layers/q has an axis of size 64, which is not divisible by fsdp = 5'
    with pytest.raises(UserError, match=message):
        sharding.leaf_spec(path, boxed['layers']['q'], uneven)
