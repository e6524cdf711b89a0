"""Cost of a compiled program from its HLO text: cycles, kernels, arrays and collectives.

The body of a loop counts once per iteration if the text states the trip count, and otherwise once.
Every branch of a conditional counts.
"""

import collections
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

COLLECTIVE_KINDS = (
    'all-reduce',
    'reduce-scatter',
    'all-gather',
    'all-to-all',
    'collective-permute',
)

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
_INSTRUCTION = re.compile(r'^ +(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(')
_COMMENT = re.compile(r'/\*.*?\*/')
_CALLEES = re.compile(
    r'(?:calls|body|condition|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)'
)
_CONDITION = re.compile(r'condition=%?([\w.\-]+)')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Bound of the loop counter, a constant in the condition of a loop.
_LOOP_BOUND = re.compile(r' s32\[\]\S* constant\((\d+)\)')
_CHANNEL = re.compile(r'channel_id=(\d+)')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_CONTROL_FLOW = ('while', 'call', 'conditional')
# Other instructions for which a GPU starts no kernel.
_WITHOUT_KERNEL = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast')
# What the TPU compiler writes for an instruction without an estimate.
_NO_ESTIMATE = 2**63 - 1
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\]')
_BITS = re.compile(r'\d+')


class HLOArray(NamedTuple):
    """Array of a compiled program.

    Attributes:
        dtype: XLA's name of the dtype, such as 'bf16'.
        shape: Shape on one device.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in bytes on one device, with types below 8 bits counted as packed."""
        bits = _BITS.search(self.dtype)
        return -(-math.prod(self.shape) * (int(bits[0]) if bits else 8) // 8)


class Collective(NamedTuple):
    """Collective operation of a program, by which devices exchange data.

    Attributes:
        kind: Operation, one of `COLLECTIVE_KINDS`.
        arrays: Results of one execution on one device.
        executions: Number of executions.
    """

    kind: str
    arrays: list[HLOArray]
    executions: int

    @property
    def bytes(self) -> int:
        """Size in bytes of the results on one device, over all executions."""
        return self.executions * sum(array.bytes for array in self.arrays)


class _Instruction(NamedTuple):
    result: str
    operation: str
    line: str
    computation: str


class Program:
    """Compiled program, parsed from its HLO text.

    Example:
        Bytes that one device receives in all-reduces:

            compiled = jax.jit(step).lower(*args).compile()
            Program(compiled.as_text()).bytes_by_kind().get('all-reduce', 0)
    """

    def __init__(self, text: str):
        """Parse the text that `jax.stages.Compiled.as_text` returns."""
        self._computations: dict[str, list[_Instruction]] = {}
        self._entry = name = ''
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                name = head[2]
                self._computations[name] = []
                self._entry = name if head[1] else self._entry
            elif match := _INSTRUCTION.match(_COMMENT.sub('', line)):
                self._computations[name].append(_Instruction(match[1], match[2], line, name))
        instructions = itertools.chain.from_iterable(self._computations.values())
        self._fused = {
            name for each in instructions if each.operation == 'fusion' for name in _called(each)
        }

    def cycles(self) -> int:
        """Return the sum of the compiler's cycle estimates over all executions.

        Only some compilers make estimates, such as the TPU compiler. The sum is 0 without
        estimates, or if an instruction is said to have none. Pallas kernels do not count. Use the
        sums for ratios between programs, not as absolute times.
        """
        estimates = [
            (times, int(match[1]))
            for instruction, times in self._walk(self._entry)
            if (match := _CYCLES.search(instruction.line))
        ]
        if any(cycles >= _NO_ESTIMATE for _, cycles in estimates):
            return 0
        return sum(times * cycles for times, cycles in estimates)

    def kernels(self) -> int:
        """Return the number of kernels that a GPU starts: fusions, library calls and copies.

        A library call counts as one kernel, even if the library starts several.
        """
        return self._kernels(self._entry)

    def arrays(self) -> set[HLOArray]:
        """Return the distinct arrays that instructions produce, including those inside fusions."""
        instructions = itertools.chain.from_iterable(self._computations.values())
        return {array for each in instructions for array in _arrays(each.result)}

    def collectives(self) -> list[Collective]:
        """Return the collective operations that are executed, in order."""
        found: list[Collective] = []
        first: dict[Any, _Instruction] = {}
        for instruction, times in self._walk(self._entry):
            kind = instruction.operation.removesuffix('-start')
            if kind not in COLLECTIVE_KINDS:
                continue
            arrays = _arrays(instruction.result)
            is_start = instruction.operation != kind
            if is_start and kind != 'all-reduce':
                # An asynchronous start returns its operands, its results and u32 scalars. That of
                # an all-reduce returns only its results.
                arrays = [array for array in arrays if array.dtype != 'u32' or array.shape]
                arrays = arrays[len(arrays) // 2 :]
            channel = _CHANNEL.search(instruction.line)
            if channel and instruction.computation in self._fused:
                # On TPUs, a collective that overlaps with computation appears in several fusions
                # with the same channel, but is executed once. Elsewhere the channel says nothing:
                # all collectives of `jax.shard_map` have the same one.
                key = (channel[1], kind, tuple(arrays))
                if first.setdefault(key, instruction) is not instruction:
                    continue
            found.append(Collective(kind, arrays, times))
        return found

    def bytes_by_kind(self) -> dict[str, int]:
        """Return the bytes of collectives on one device, over all executions, by kind."""
        total: collections.Counter[str] = collections.Counter()
        for each in self.collectives():
            total[each.kind] += each.bytes
        return dict(total)

    def _kernels(self, name: str) -> int:
        total = 0
        for each in self._computations.get(name, ()):
            if each.operation in _CONTROL_FLOW:
                total += self._trip_count(each) * sum(map(self._kernels, _called(each)))
            else:
                is_started = not each.operation.endswith('-done')
                total += is_started and each.operation not in _WITHOUT_KERNEL
        return total

    def _walk(self, name: str, times: int = 1) -> Iterator[tuple[_Instruction, int]]:
        """Yield the instructions of a computation and of the computations that it calls.

        Each instruction is paired with the number of its executions.
        """
        for instruction in self._computations.get(name, ()):
            yield instruction, times
            trip_count = self._trip_count(instruction) if instruction.operation == 'while' else 1
            for each in _called(instruction):
                yield from self._walk(each, times * trip_count)

    def _trip_count(self, loop: _Instruction) -> int:
        if match := _TRIP_COUNT.search(loop.line):
            return int(match[1])
        condition = _CONDITION.search(loop.line)
        instructions = self._computations.get(condition[1], []) if condition else []
        lines = [instruction.line for instruction in instructions]
        bounds = [int(match[1]) for line in lines if (match := _LOOP_BOUND.search(line))]
        return bounds[0] if len(bounds) == 1 and 'direction=LT' in lines[-1] else 1


def _called(instruction: _Instruction) -> list[str]:
    """Return the names of the computations that an instruction calls."""
    return [
        name
        for group in _CALLEES.findall(instruction.line)
        for name in re.findall(r'[\w.\-]+', group)
    ]


def _arrays(result: str) -> list[HLOArray]:
    return [
        HLOArray(dtype, tuple(int(size) for size in shape.split(',') if size))
        for dtype, shape in _ARRAY.findall(result)
    ]
