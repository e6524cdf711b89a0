"""Functions of the kind that language models write, each with its own imports.

All of them return the same value in the sandbox as outside.
"""


def run_coroutine(x):
    import asyncio

    async def twice(n):
        await asyncio.sleep(0.001)
        return 2 * n

    return asyncio.run(twice(x))


def gather_coroutines(x):
    import asyncio

    async def one(n):
        await asyncio.sleep(0.002 / (n + 1))
        return n

    async def main():
        return await asyncio.gather(*(one(n) for n in range(3)))

    return asyncio.run(main())


def asynchronous_queue(x):
    import asyncio

    async def main():
        queue, lock = asyncio.Queue(), asyncio.Lock()

        async def make():
            for n in range(3):
                async with lock:
                    await queue.put(n)

        task = asyncio.create_task(make())
        received = [await asyncio.wait_for(queue.get(), 10) for _ in range(3)]
        await task
        return received

    return asyncio.run(main())


def asynchronous_timeout(x):
    import asyncio

    async def main():
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            return 'late'

    return asyncio.run(main())


def asynchronous_task_group(x):
    import asyncio

    async def fail():
        raise ValueError('bad')

    async def main():
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                group.create_task(asyncio.sleep(60))
        except* ValueError as errors:
            texts = [str(error) for error in errors.exceptions]
        return texts

    return asyncio.run(main())


def asynchronous_generator(x):
    import asyncio

    async def numbers():
        for n in range(3):
            yield n

    async def main():
        return [n async for n in numbers()]

    return asyncio.run(main())


def event_loop(x):
    import asyncio

    loop = asyncio.new_event_loop()
    try:
        loop.call_later(0.001, print, 'later')
        return loop.run_until_complete(asyncio.sleep(0.002, x))
    finally:
        loop.close()


def time_zone(x):
    import datetime
    import zoneinfo

    zone = zoneinfo.ZoneInfo('Europe/Paris')
    return str(datetime.datetime(2024, 7, 1, tzinfo=zone))


def time_zones(x):
    import zoneinfo

    return 'Asia/Tokyo' in zoneinfo.available_timezones()


def user(x):
    import getpass

    return type(getpass.getuser()) is str


def current_directory(x):
    import os
    import pathlib

    return os.path.isabs(os.getcwd()), pathlib.Path('a').resolve().name


def data_class(x):
    import dataclasses

    @dataclasses.dataclass(order=True)
    class Item:
        price: int
        tags: list = dataclasses.field(default_factory=list)

    return dataclasses.asdict(max(Item(1), Item(x)))


def named_tuple(x):
    from typing import NamedTuple

    class Pair(NamedTuple):
        first: int
        second: str

    return tuple(Pair(x, 'b')._replace(second='c'))


def enumeration(x):
    import enum

    class Color(enum.Enum):
        RED = enum.auto()
        BLUE = 'b'

    return [color.name for color in Color], Color('b').value


def regular_expression(x):
    import re

    return re.sub(r'(\d)(\d)', r'\2\1', str(x)), re.findall(r'(?P<a>\w)-(\w)', 'a-b c-d')


def counter(x):
    import collections

    return collections.Counter('aab').most_common(1)


def default_dictionary(x):
    import collections

    groups = collections.defaultdict(list)
    groups[1].append(x)
    return dict(groups)


def double_ended_queue(x):
    import collections

    queue = collections.deque([1, 2, x])
    queue.rotate()
    return queue


def chained_maps(x):
    import collections

    return collections.ChainMap({'a': x}, {'b': 2})['b'], list(collections.OrderedDict(a=1))


def numbers_up_to(x):
    return range(x)


def cache(x):
    import functools

    @functools.lru_cache(maxsize=None)
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    return fibonacci(x), fibonacci.cache_info().misses


def reduction(x):
    import functools
    import operator

    return functools.reduce(operator.mul, [x, 2])


def single_dispatch(x):
    import functools

    @functools.singledispatch
    def name(value):
        return 'other'

    @name.register
    def _(value: int):
        return 'int'

    return name(x), name('')


def locks(x):
    import threading

    with threading.Lock(), threading.RLock(), threading.Semaphore():
        return threading.Event().wait(0.001)


def thread_local(x):
    import threading

    mine = threading.local()
    mine.x = x
    return mine.x, threading.current_thread().name


def queues(x):
    import queue

    line = queue.PriorityQueue()
    line.put(x)
    line.put(1)
    return line.get()


def random_numbers(x):
    import random

    rng = random.Random(0)
    return rng.sample(range(x), x), rng.random(), rng.gauss(0, 1)


def secret_numbers(x):
    import secrets
    import uuid

    return len(secrets.token_hex(x)), len(str(uuid.uuid4()))


def decimal_number(x):
    from decimal import Decimal, localcontext

    with localcontext() as context:
        context.prec = 5
        return Decimal(1) / Decimal(3)


def fraction(x):
    from fractions import Fraction

    return Fraction(1, x)


def heap(x):
    import heapq

    numbers = [3, 1, x]
    heapq.heapify(numbers)
    return heapq.heappop(numbers), heapq.nlargest(2, numbers)


def bisection(x):
    import bisect

    return bisect.bisect([10, 20, 30], x)


def date(x):
    import datetime

    return datetime.date(2024, 2, 28) + datetime.timedelta(days=1)


def date_and_time(x):
    import datetime

    return datetime.datetime.strptime('2024-02-29 01:02', '%Y-%m-%d %H:%M')


def duration(x):
    import datetime

    return datetime.timedelta(hours=x), datetime.time(1, 2)


def calendar_month(x):
    import calendar
    import time

    return calendar.monthrange(2024, 2)[1], time.strftime('%Y', time.gmtime(0))


def iteration_tools(x):
    import itertools

    return list(itertools.accumulate(itertools.chain([1], [x]))), list(itertools.pairwise('abc'))


def type_hints(x):
    from typing import Generic, List, Optional, TypeVar, get_type_hints

    kind = TypeVar('kind')

    class Box(Generic[kind]):
        def __init__(self, value: kind):
            self.value = value

    def use(a: Optional[List[int]]) -> 'int': ...

    return Box[int](x).value, len(get_type_hints(use))


def string_constants(x):
    import string

    return string.ascii_lowercase[:3], string.Template('$a').substitute(a=x), f'{x:>5.1f}|{x!r}'


def mathematics(x):
    import math

    return math.comb(x, 2), math.isclose(math.sqrt(441), x), math.inf, math.prod([x, 2])


def statistic(x):
    import statistics

    return statistics.median([1, x, 3]), statistics.pstdev([1, 2, 3])


def complex_number(x):
    import cmath

    return cmath.sqrt(-4)


def json_text(x):
    import json

    return json.loads(json.dumps({'a': [x, None]}, indent=2, sort_keys=True))


def csv_in_memory(x):
    import csv
    import io

    out = io.StringIO()
    csv.writer(out).writerow([x, 'a,b'])
    return next(csv.reader(io.StringIO(out.getvalue())))


def bytes_in_memory(x):
    import io
    import struct

    return io.BytesIO(struct.pack('<I', x)).read(), bytearray(b'a')


def unit_test(x):
    import unittest

    case = unittest.TestCase()
    case.assertEqual(x, x)
    with case.assertRaises(ValueError):
        int('a')
    return x


def test_suite(x):
    import io
    import unittest

    class Tests(unittest.TestCase):
        def test_double(self):
            self.assertEqual(2 * x, 42)

    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Tests)
    return unittest.TextTestRunner(stream=io.StringIO()).run(suite).wasSuccessful()


def mock_object(x):
    from unittest import mock

    return mock.Mock(return_value=x)()


def logger(x):
    import logging

    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger('f').warning('x is %s', x)
    return x


def warning(x):
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        warnings.warn('old', DeprecationWarning)
    return len(caught)


def redirected_output(x):
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(ZeroDivisionError):
        print(x)
        1 / 0
    return out.getvalue()


def prints(x):
    import sys

    for n in range(1000):
        print(n, flush=True)
    print('a', file=sys.stderr, flush=True)
    return x


def caught_exit(x):
    import sys

    try:
        sys.exit(1)
    except SystemExit as error:
        return error.code


def own_exception(x):
    class OwnError(ValueError):
        pass

    try:
        raise OwnError('bad') from KeyError('a')
    except ValueError as error:
        return type(error).__name__, str(error), repr(error.__cause__)


def deep_recursion(x):
    import sys

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10**4)

    def depth(n):
        return 0 if n == 0 else 1 + depth(n - 1)

    try:
        return depth(5000)
    finally:
        sys.setrecursionlimit(before)


def generators(x):
    def echo():
        received = None
        while received != x:
            received = yield received
        yield from range(2)

    generator = echo()
    next(generator)
    return generator.send(1), generator.send(x), list(generator)


def context_manager(x):
    import contextlib

    seen = []

    @contextlib.contextmanager
    def within():
        seen.append(1)
        yield
        seen.append(2)

    with within(), contextlib.ExitStack() as stack:
        stack.callback(seen.append, 3)
    return seen


def abstract_class(x):
    import abc

    class Shape(abc.ABC):
        @abc.abstractmethod
        def area(self): ...

        def __lt__(self, other):
            return self.area() < other.area()

    class Square(Shape):
        __slots__ = ('side',)

        def __init__(self, side):
            self.side = side

        def area(self):
            return self.side**2

        @property
        def scaled(self):
            return 2 * self.area()

    return [square.scaled for square in sorted([Square(x), Square(2)])]


def metaclass(x):
    class Meta(type):
        names = []

        def __new__(cls, name, bases, namespace, **keywords):
            cls.names.append(name)
            return super().__new__(cls, name, bases, namespace, **keywords)

    class One(metaclass=Meta):
        def __init_subclass__(cls, **keywords):
            Meta.names.append(keywords['of'])

    class Two(One, of='two'):
        pass

    return Meta.names


def structural_match(x):
    match {'op': 'add', 'values': [x, 1]}:
        case {'op': 'add', 'values': [a, b]}:
            return a + b


def copies(x):
    import copy
    import pickle

    return pickle.loads(pickle.dumps([x])), copy.deepcopy({1: [2]})


def hashes(x):
    import base64
    import hashlib
    import zlib

    return hashlib.sha256(b'a').hexdigest(), base64.b64encode(b'a'), zlib.crc32(b'a')


def texts(x):
    import difflib
    import pprint
    import textwrap
    import unicodedata

    ratio = difflib.SequenceMatcher(None, 'abc', 'abd').ratio()
    return textwrap.fill('a b', 1), unicodedata.name('é'), pprint.pformat([x]), ratio


def spooled_file(x):
    import tempfile

    with tempfile.SpooledTemporaryFile(mode='w+') as file:
        file.write(str(x))
        file.seek(0)
        return file.read()


def clocks(x):
    import time

    start = time.perf_counter()
    time.sleep(0.01)
    return 0.009 <= time.perf_counter() - start < 10, time.time() > 1e9


def machine(x):
    import os
    import platform
    import sys

    return (os.cpu_count() or 1) > 0, platform.system(), sys.version_info[0], os.sep


def evaluation(x):
    import ast

    return ast.literal_eval('[1, 2]'), eval('x + 1', {'x': x}), ast.unparse(ast.parse('a+b'))


def sorted_graph(x):
    import graphlib

    return list(graphlib.TopologicalSorter({1: [2], 2: [3]}).static_order())


def weak_reference(x):
    import gc
    import weakref

    class Node:
        pass

    node = Node()
    reference = weakref.ref(node)
    del node
    gc.collect()
    return reference() is None


def array_of_numbers(x):
    import array

    return array.array('i', [x, 2]).tolist(), sum(memoryview(b'ab'))


def closures(x):
    total = 0

    def add(n):
        nonlocal total
        total += n
        return total

    return [add(n) for n in range(x)][-1]


def sieve(x):
    is_prime = [True] * 10**5
    for n in range(2, 317):
        if is_prime[n]:
            is_prime[n * n :: n] = [False] * len(is_prime[n * n :: n])
    return sum(is_prime[2:])


def big_numbers(x):
    return 2**x**2 % (10**9 + 7), pow(3, -1, 7), x.bit_length(), int('z', 36)


def big_list(x):
    return list(range(10**4))
