"""Ways in which a disk, a program or a person may damage a file."""

import json
import os
import pathlib
import random
import re
from typing import Any

_DEEP = '@deep@'
_VALUES = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**20, -(10**20), 1e308, 0.5, float('nan')),
    *(float('inf'), '', 'x', 'x' * 10**5, '\ud800', 'a\nb\r\0', '/dev/zero', '../..', [], {}, [[]]),
    *([None], {'a': 1}, [1] * 1000, _DEEP),
)
_NUMBERS = (0, 1, 2, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_BYTES = (b'\xff', b'\0', b'\xed\xa0\x80', b'\\ud800', b'[' * 10**5, b'9' * 5000, b'"', b'\n', b'{')


def damage(rng: random.Random, path: pathlib.Path) -> str:
    """Damage a file in one to three ways, and return a description."""
    told = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not path.is_file():
            break
        told.append(rng.choice(_ways(path))(rng, path))
    return f'{path.name}: {"; ".join(told)}'


def _ways(path: pathlib.Path) -> list[Any]:
    ways = [truncate, flip, insert, repeat, remove, replace_number, change_file_type]
    known = {'.json': change_json, '.jsonl': change_line, '.safetensors': change_header}
    if path.suffix in known:
        return [*ways, *[known[path.suffix]] * 12]
    if path.suffix == '.gguf':
        return [*ways, *[change_metadata] * 12]
    return ways


def truncate(rng: random.Random, path: pathlib.Path) -> str:
    content = path.read_bytes()
    size = rng.choice((0, 1, len(content) - 1, rng.randrange(len(content) + 1)))
    path.write_bytes(content[: max(size, 0)])
    return f'cut to {size} bytes'


def flip(rng: random.Random, path: pathlib.Path) -> str:
    content = bytearray(path.read_bytes())
    at = _random_position(rng, content)
    if content:
        content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f'flipped a bit of byte {at}'


def insert(rng: random.Random, path: pathlib.Path) -> str:
    content = path.read_bytes()
    at, more = _random_position(rng, content), rng.choice(_BYTES)
    path.write_bytes(content[:at] + more + content[at:])
    return f'inserted {more[:8]!r} at {at}'


def repeat(rng: random.Random, path: pathlib.Path) -> str:
    content = path.read_bytes()
    at, size = _random_position(rng, content), rng.randrange(1, 200)
    path.write_bytes(content[: at + size] + content[at:])
    return f'repeated {size} bytes at {at}'


def remove(rng: random.Random, path: pathlib.Path) -> str:
    content = path.read_bytes()
    at, size = _random_position(rng, content), rng.randrange(1, 200)
    path.write_bytes(content[:at] + content[at + size :])
    return f'removed {size} bytes at {at}'


def replace_number(rng: random.Random, path: pathlib.Path) -> str:
    content = path.read_bytes()
    found = list(re.finditer(rb'\d+', content[:100_000]))
    number = str(rng.choice((*_NUMBERS, 10**20, 10**4000))).encode()
    if found:
        match = rng.choice(found)
        path.write_bytes(content[: match.start()] + number + content[match.end() :])
    return f'replaced a number by one of {len(number)} digits'


def change_file_type(rng: random.Random, path: pathlib.Path) -> str:
    path.unlink()
    kind = rng.choice(('nothing', 'pipe', 'directory', 'device', 'loop'))
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'directory':
        path.mkdir()
    elif kind != 'nothing':
        path.symlink_to('/dev/zero' if kind == 'device' else path.name)
    return f'made it {kind}'


def change_json(rng: random.Random, path: pathlib.Path) -> str:
    changed = _mutate_json(rng, path.read_text(errors='replace'))
    path.write_text(changed[0], errors='replace')
    return changed[1]


def change_line(rng: random.Random, path: pathlib.Path) -> str:
    lines = path.read_text(errors='replace').split('\n')
    at = rng.randrange(len(lines))
    how = rng.choice(('change', 'change', 'change', 'repeat', 'remove', 'swap', 'stray', 'blank'))
    told = f'line {at}: {how}'
    if how == 'change':
        lines[at], what = _mutate_json(rng, lines[at])
        told += f' {what}'
    elif how == 'repeat':
        lines.insert(at, lines[at])
    elif how == 'remove':
        del lines[at]
    elif how == 'swap':
        lines[at - 1], lines[at] = lines[at], lines[at - 1]
    else:
        lines.insert(at, {'stray': rng.choice(('{}', '[]', '1', '{"a": 1}')), 'blank': ''}[how])
    path.write_text('\n'.join(lines), errors='replace')
    return told


def change_header(rng: random.Random, path: pathlib.Path) -> str:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], 'little')
    if rng.random() < 0.2:
        number = rng.choice(_NUMBERS)
        path.write_bytes(number.to_bytes(8, 'little') + content[8:])
        return f'header of {number} bytes'
    header, told = _mutate_json(rng, content[8 : 8 + size].decode(errors='replace'))
    encoded = header.encode(errors='replace')
    path.write_bytes(len(encoded).to_bytes(8, 'little') + encoded + content[8 + size :])
    return f'header: {told}'


def change_metadata(rng: random.Random, path: pathlib.Path) -> str:
    """Change the type, or the first bytes of the value, of a GGUF key."""
    content = bytearray(path.read_bytes())
    keys = re.findall(
        rb'(?:llama|tokenizer|general)\.[a-z_.]+|[a-z0-9_.]+\.weight', content[:60_000]
    )
    if not keys:
        return flip(rng, path)
    key = rng.choice(keys)
    after = content.find(key) + len(key)
    at = after + rng.choice((0, 4, 4, 4, 8, 12, -len(key) - 8))
    size = rng.choice((4, 8))
    number = rng.choice((*_NUMBERS, *range(14)))
    if rng.random() < 0.2:
        content[at : at + size] = b'\xff\xfe' * (size // 2)
    else:
        content[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, 'little')
    path.write_bytes(content)
    return f'{key.decode()}: {size} bytes at {at - after} are {number}'


def _random_position(rng: random.Random, content: bytes | bytearray) -> int:
    """Return a random position, half of the time near the start."""
    end = min(len(content), 2000) if rng.random() < 0.5 else len(content)
    return rng.randrange(max(end, 1))


def _mutate_json(rng: random.Random, text: str) -> tuple[str, str]:
    """Return JSON with one random change, and a description of the change."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text, 'nothing'
    places = list(_places(value, ()))
    *parents, last = rng.choice(places) if places else (None,)
    other, how = (
        rng.choice(_VALUES),
        rng.choice(('value', 'value', 'value', 'delete', 'rename', 'twice')),
    )
    told = f'{how} {(*parents, last)} {other!r:.40}'
    if last is None or rng.random() < 0.05:
        return _dumped(other), f'the whole is {other!r:.40}'
    parent = value
    for step in parents:
        parent = parent[step]
    if how == 'delete':
        del parent[last]
    elif how == 'rename' and isinstance(parent, dict):
        parent[rng.choice(('', 'x', '\ud800', 'a\nb', 'x' * 1000))] = parent.pop(last)
    elif how == 'twice' and isinstance(parent, dict):
        name = json.dumps(last)
        written = _dumped(value)
        return written.replace(f'{name}:', f'{name}: {_dumped(other)}, {name}:', 1), told
    else:
        parent[last] = other
    return _dumped(value), told


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    items: Any = ()
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if len(path) < 6 and isinstance(inner, dict | list) and len(inner) < 1000:
            yield from _places(inner, (*path, key))


def _dumped(value: Any) -> str:
    deep = '[' * 10**5 + ']' * 10**5
    return json.dumps(value).replace(f'"{_DEEP}"', deep)
