"""Room for the frames of nested calls."""

import resource
from concurrent.futures import ThreadPoolExecutor

from malora_jax.frames import call_with_room


def count_page_faults() -> int:
    """Count this thread's page faults while 200 calls are made at each of 600 depths."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for depth in range(600):
        call_at(depth)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def call_at(depth: int) -> None:
    if depth:
        call_at(depth - 1)
    else:
        for _ in range(200):
            nothing()


def nothing() -> None:
    pass


def test_calls_across_the_end_of_a_chunk_map_no_memory():
    """Pytest runs with room, but a new thread has chunks of its own."""
    with ThreadPoolExecutor(1) as thread:
        without = thread.submit(count_page_faults).result()
        with_room = thread.submit(lambda: call_with_room(count_page_faults)).result()
    assert with_room < 100 < 1000 < without
