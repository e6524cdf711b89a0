"""Analysis of HLO programs: one written by hand, and one that JAX compiled."""

import jax
import jax.numpy as jnp

from malora_jax.distributed.hlo import Collective, HLOArray, Program

TEXT = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%condition (c: (s32[], f32[4,8])) -> pred[] {
  %last = s32[]{:T(128)} constant(30)
  %c = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%i, %last), direction=LT
}

%started (p: bf16[4,8]) -> bf16[8,8] {
  %p = bf16[4,8] parameter(0)
  ROOT %first = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, dimensions={0}
}

%done (p: bf16[4,8]) -> bf16[8,8] {
  %p = bf16[4,8] parameter(0)
  ROOT %again = bf16[8,8] all-gather(%p), channel_id=1, dimensions={0}
}

%body (c: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %c = (s32[], f32[4,8]) parameter(0)
  %x = f32[4,8] get-tuple-element(%c), index=1
  %s = bf16[8,8] fusion(%x), kind=kCustom, calls=%started, backend_config={"estimated_cycles":"7"}
  %d = bf16[8,8] fusion(%s), kind=kCustom, calls=%done, backend_config={"estimated_cycles":"5"}
  %r = (f32[4,8], /*index=1*/f32[]) all-reduce(%x, %x), channel_id=2, to_apply=%add
  ROOT %t = (s32[], f32[4,8]) tuple(%c, %x)
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8] parameter(0)
  %t = (s32[], f32[4,8]) tuple(%p)
  %loop = (s32[], f32[4,8]) while(%t), condition=%condition, body=%body
  %n = (s32[], f32[4,8]) while(%t), condition=%other, body=%body, \
backend_config={"known_trip_count":{"n":"2"}}
  %g = (f32[2,8], f32[4,8], u32[], u32[]) all-gather-start(%p), channel_id=1, dimensions={0}
  ROOT %x = f32[4,8] get-tuple-element(%loop), index=1, backend_config={"estimated_cycles":"100"}
}
"""


def test_loops_count_as_often_as_they_run():
    """One loop runs 30 times by its condition, one twice by the compiler's annotation.

    A collective that is repeated on the same channel, such as its asynchronous halves, counts
    once.
    """
    program = Program(TEXT)
    assert program.cycles() == 100 + (30 + 2) * (7 + 5)
    # Two fusions and an all-reduce per iteration; the comparison, except for the loop without it.
    assert program.kernels() == 30 * (3 + 1) + 2 * 3 + 1
    gathered = Collective('all-gather', [HLOArray('bf16', (8, 8))], 30)
    summed = Collective('all-reduce', [HLOArray('f32', (4, 8)), HLOArray('f32', ())], 30)
    again = [each._replace(executions=2) for each in (gathered, summed)]
    last = Collective('all-gather', [HLOArray('f32', (4, 8))], 1)
    assert program.collectives() == [gathered, summed, *again, last]
    assert gathered.bytes == 30 * 64 * 2
    assert program.bytes_by_kind() == {
        'all-gather': (30 + 2) * 64 * 2 + 32 * 4,
        'all-reduce': (30 + 2) * (32 + 1) * 4,
    }


def test_a_program_with_an_instruction_without_an_estimate_has_none():
    """The TPU compiler writes the largest int64 for such an instruction."""
    text = TEXT.replace('"estimated_cycles":"7"', f'"estimated_cycles":"{2**63 - 1}"')
    assert text != TEXT
    assert Program(text).cycles() == 0


def test_asynchronous_starts_on_one_channel_are_different_collectives():
    """On GPUs, all collectives of `jax.shard_map` have the same channel."""
    operations = {
        'all-gather': '(f32[8], f32[64]) all-gather-start(%p)',
        'reduce-scatter': '((f32[8]), f32[1]) reduce-scatter-start(%p)',
        'all-to-all': '((f32[8], f32[4]), (f32[8], f32[4])) all-to-all-start(%p)',
        'collective-permute': '(f32[8], f32[8]) collective-permute-start(%p)',
        'all-reduce': '(f32[8], f32[2]) all-reduce-start(%p, %q)',
    }
    starts = ''.join(f'  %x = {text}, channel_id=1\n' for text in operations.values())
    program = Program(f'ENTRY %main (p: f32[8]) -> f32[8] {{\n{starts}{starts}}}\n')
    assert program.bytes_by_kind() == {
        'all-gather': 2 * 64 * 4,
        'reduce-scatter': 2 * 4,
        'all-to-all': 2 * 12 * 4,
        'collective-permute': 2 * 8 * 4,
        'all-reduce': 2 * 10 * 4,
    }


def test_sums_on_one_channel_are_different_collectives():
    """On TPUs too, all collectives of `jax.shard_map` have the same channel."""
    line = '  %x = f32[8] all-reduce(%p), channel_id=1, to_apply=%add\n'
    program = Program(f'ENTRY %main (p: f32[8]) -> f32[8] {{\n{line}{line}}}\n')
    assert program.bytes_by_kind() == {'all-reduce': 2 * 8 * 4}


def test_arrays_of_few_bits_are_packed():
    assert HLOArray('s4', (3, 3)).bytes == 5
    assert HLOArray('pred', (10,)).bytes == 10
    assert HLOArray('f8e4m3fn', (10,)).bytes == 10


def test_a_program_on_one_device_sends_nothing():
    step = jax.jit(lambda x: jax.lax.fori_loop(0, 7, lambda _, y: jnp.sin(y @ y), x))
    program = Program(step.lower(jnp.ones((4, 4))).compile().as_text())
    assert program.collectives() == []
    assert program.bytes_by_kind() == {}
