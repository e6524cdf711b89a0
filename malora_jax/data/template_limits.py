"""Jinja environment for untrusted templates, with limits on time and memory.

Jinja's sandbox keeps a template away from the system. But nested `{% for %}` loops may run for
years, and 'a' * 10**12 may use up all memory. Here every loop iteration, call, filter and operator
is metered:

* after `TIME_LIMIT_S` of the thread's CPU time, the template is stopped;
* no value and no concatenated text may be larger than `MAX_SIZE` characters and items;
* an operation that multiplies sizes (repetition, padding, replacing, joining) is rejected before
  it starts if its result might be much larger than `MAX_SIZE`;
* a filter, a call or a repetition is rejected before it starts if one of its arguments is a number
  above `MAX_NUMBER`.

These limits also bound the time of a single operation to a fraction of a second. The
filters in `_REMOVED_FILTERS` are removed, mostly because their time grows faster than their input.
"""

import functools
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes, sandbox, visitor

TIME_LIMIT_S = 2.0
MAX_SIZE = 2**22
MAX_NUMBER = 10**6
# Largest integer that arithmetic may produce.
_MAX_INT = 2**63 - 1
# Largest estimated result of an operation that multiplies sizes, before its actual size is checked.
_MAX_PRODUCT = 2**26
_REMOVED_FILTERS = ('pprint', 'random', 'striptags', 'sum', 'urlize', 'wordwrap', 'xmlattr')
# Filters, methods and operators whose result may be as large as the product of their arguments.
_MULTIPLYING = (
    *('*', 'batch', 'center', 'expandtabs', 'indent', 'join', 'ljust', 'rjust', 'slice', 'tojson'),
    *('translate', 'zfill'),
)
# A width in a format string that is 1,000 or more, or that is given as an argument.
_WIDE = re.compile(r'%[^a-zA-Z%]*(\*|\d{4})|\{[^{}]*\d{4}')

# Number of ticks (metered operations) between two readings of the clock.
_TICKS = 32

_meter = threading.local()


class LimitError(jinja2.TemplateError):
    """Error of a template that takes too much time or memory."""


class LimitedEnvironment(sandbox.ImmutableSandboxedEnvironment):
    """Sandboxed Jinja environment that stops a template when it takes too much time or memory.

    Call `restart_timer` before a template is compiled or rendered.
    """

    intercepted_binops = frozenset(['+', '*', '**', '%'])

    def __init__(self, **options: Any):
        super().__init__(**options)
        del self.globals['lipsum']
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        for name, function in [*self.filters.items()]:
            self.add_filter(name, function)
        self.filters |= {_BUILT: _check_result, _LOOP: _tick_per_item}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Add a filter, whose calls are checked; it replaces any filter of the same name."""
        self.filters[name] = _with_metering(name, function)

    @staticmethod
    def restart_timer() -> None:
        """Restart the time limit of this thread."""
        _meter.end, _meter.ticks = time.thread_time() + TIME_LIMIT_S, 0

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Return the joined texts of a template's output, or of one of its macros or blocks.

        Raises:
            LimitError: The text is too large.
        """
        return ''.join(_check_total_length(parts))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Check the arguments of a call, make the call in the sandbox, and check its result.

        Raises:
            LimitError: The call exceeds a limit.
        """
        # The sandbox wraps `str.format`, so the string that it belongs to is found on the wrapped
        # method.
        receiver = getattr(getattr(__obj, '__wrapped__', __obj), '__self__', None)
        values = (receiver, *args) if isinstance(receiver, str) else args
        _check_arguments(getattr(__obj, '__name__', ''), values, kwargs)
        return _check_result(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Check the operands of a binary operator, apply it in the sandbox, and check its result.

        Raises:
            LimitError: The operation exceeds a limit.
        """
        numbers = _is_number(left) and _is_number(right)
        if operator == '%' and isinstance(left, str):
            _check_arguments('format', (left, right), {})
        elif operator == '*' and not numbers:
            _check_arguments('*', (left, right), {})
        elif operator == '**' and numbers and abs(left) > 1 and right > 64:
            raise LimitError('it computes too large a number')
        else:
            _tick()
        return _check_result(super().call_binop(context, operator, left, right))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_MeteringTransformer().visit(source), *args, **kwargs)


# Names of the filters that meter expressions. They start with a space, so that no template can use
# them.
_BUILT, _LOOP = ' built', ' loop'


class _MeteringTransformer(visitor.NodeTransformer):
    """AST transformer that inserts filters which check the limits while a template runs.

    One filter checks the time in each iteration of a `{% for %}` loop. The other one checks the
    size of each new list, tuple, dict and concatenated text.
    """

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, _LOOP, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Expr) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if getattr(node, 'ctx', 'load') != 'load':  # Targets of a loop or `set` are not values.
            return node
        return nodes.Filter(node, _BUILT, [], [], None, None, lineno=node.lineno)

    visit_List = visit_Tuple = visit_Dict = visit_Concat  # noqa: N815


def _with_metering(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that also checks its arguments and its result against the limits."""
    first = 1 if hasattr(function, 'jinja_pass_arg') else 0

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(name, args[first:], kwargs)
        return _check_result(function(*args, **kwargs))

    return metered


def _tick() -> None:
    _meter.ticks += 1
    # Reading the clock takes longer than most operations.
    if _meter.ticks % _TICKS == 0 and time.thread_time() > _meter.end:
        raise LimitError(f'it takes more than {TIME_LIMIT_S:g} seconds')


def _tick_per_item(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _tick()
        yield item


def _check_total_length(parts: Iterable[str]) -> Iterator[str]:
    count = 0
    for part in parts:
        count += len(part)
        if count > MAX_SIZE:
            raise _too_large()
        yield part


def _check_arguments(name: str, values: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Check that an operation will not take too much time or memory, before it starts.

    Args:
        name: Name of the filter, method or operator.
        values: Positional arguments; for a method of a string, the string comes first.
        named: Keyword arguments by name.

    Raises:
        LimitError: A number is too large, the result might be too large, or the time is over.
    """
    _tick()
    values = (*values, *named.values())
    if any(_is_number(value) and abs(value) > MAX_NUMBER for value in values):
        raise LimitError(f'it passes a number above {MAX_NUMBER:,} to {name or "a call"}')
    bound: float = 0
    if name == 'replace':
        text, old, new = (str(value) for value in values[:3])
        bound = len(text) + text.count(old) * len(new)
    elif name in ('format', 'format_map'):
        text = str(values[0])
        if _WIDE.search(text):
            raise _too_large()
        bound = len(text) + (text.count('%') + text.count('{')) * max(map(_size, values))
    elif name in _MULTIPLYING:
        bound = math.prod(max(1, _size(value)) for value in values)
    if bound > _MAX_PRODUCT:
        raise _too_large()


def _check_result(value: Any) -> Any:
    """Check the size of a value, and return the value unchanged.

    Raises:
        LimitError: The value is too large.
    """
    if type(value) is int:
        if abs(value) > _MAX_INT:
            raise LimitError('it computes too large a number')
    elif _size(value) > MAX_SIZE:
        raise _too_large()
    return value


def _size(value: Any) -> float:
    """Return the number of characters and items in a value, or the absolute value of a number.

    Counting stops above `MAX_SIZE`, so the result for a larger value is some number above
    `MAX_SIZE`.
    """
    if isinstance(value, str):
        return len(value)
    if _is_number(value):
        return abs(value)
    size, inside = 1, [value]
    while inside and size <= MAX_SIZE:
        each = inside.pop()
        if isinstance(each, str):
            size += len(each)
        elif isinstance(each, list | tuple | dict):
            size += 1 + len(each)
            inside += [*each, *each.values()] if isinstance(each, dict) else each
    return size


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _too_large() -> LimitError:
    return LimitError(f'it builds a value of more than {MAX_SIZE:,} characters or items')
