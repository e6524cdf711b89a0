"""Chat templates that take too much time or memory are refused; ordinary ones still render."""

import resource
import time

import pytest

from malora_jax.data import template_limits
from malora_jax.data.chat import ChatRenderer
from malora_jax.errors import UserError

ORDINARY = (
    '{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}'
    '{% if add_generation_prompt %}<|assistant|>{% endif %}'
)
DOUBLE = '{% set ns = namespace(x="ab") %}{% for i in range(99) %}{% set ns.x = %s %}{% endfor %}'
HOSTILE = {
    'nested loops': (
        '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}'
    ),
    'nested loops with text': (
        '{% for a in range(99999) %}{% for b in range(99999) %}text{% endfor %}{% endfor %}'
    ),
    'recursive macro': '{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}'
    '{{ f(60) }}',
    'loops in filters': '{{ range(99999)|map("replace", "a", "b")|map("upper")|list|length }}' * 99,
    'repeated text': '{{ "a" * 10**12 }}',
    'repeated list': '{% set x = [0] * 10**10 %}',
    'power': '{{ 10 ** 10 ** 8 }}',
    'power of a power': '{% set x = 9**60 %}{% set y = x**60 %}{{ y**60 }}',
    'doubled by ~': DOUBLE.replace('%s', 'ns.x ~ ns.x'),
    'doubled by +': DOUBLE.replace('%s', 'ns.x + ns.x'),
    'doubled list': DOUBLE.replace('%s', '[ns.x, ns.x]'),
    'doubled object': DOUBLE.replace('%s', '{"a": ns.x, "b": ns.x}'),
    'doubled by dict()': DOUBLE.replace('%s', 'dict(a=ns.x, b=ns.x)'),
    'doubled by join': DOUBLE.replace('%s', '[ns.x, ns.x]|join'),
    'doubled by replace': DOUBLE.replace('%s', 'ns.x|replace("a", "aa")|replace("b", "bb")'),
    'doubled by a method': DOUBLE.replace('%s', 'ns.x.replace("a", "aa")'),
    'doubled by format': DOUBLE.replace('%s', '"%s%s"|format(ns.x, ns.x)'),
    'doubled by %': DOUBLE.replace('%s', '"%s%s" % (ns.x, ns.x)'),
    'doubled by .format': DOUBLE.replace('%s', '"{0}{0}".format(ns.x)'),
    'doubled block': '{% set x = "ab" %}'
    + '{% set y %}{{ x }}{{ x }}{% endset %}{% set x %}{{ y }}{{ y }}{% endset %}' * 40,
    'center': '{{ "a"|center(10**10) }}',
    'ljust': '{{ "a".ljust(10**10) }}',
    'wide format': '{{ "%09999999999d" % 1 }}',
    'wide format by argument': '{{ "%*d"|format(10**9, 1) }}',
    'wide .format': '{{ "{:>9999999999}".format(1) }}',
    'wide .format by argument': '{{ "{:>{}}".format(1, 10**9) }}',
    'indent': '{{ messages|tojson(indent=10**9) }}',
    'slices': '{{ "ab"|slice(10**9)|list }}',
    'words': '{{ lipsum(10**6) }}',
    'deep source': '{{ ' + '(' * 5000 + '1' + ')' * 5000 + ' }}',
    'deep loops': '{% for a in [1] %}' * 50 + '{% endfor %}' * 50,
}


@pytest.mark.parametrize('source', HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_takes_too_much_is_refused(source, monkeypatch):
    monkeypatch.setattr(template_limits, 'TIME_LIMIT_S', 0.5)
    began, memory = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        UserError, match=r"The model's chat template (is broken|fails) \(.+\): set "
    ):
        ChatRenderer(source + ORDINARY, {}, frozenset(['<|end|>']))
    assert time.thread_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**20  # In KiB: 1 GiB.


def test_limits_hold_while_rendering_and_not_only_at_first(monkeypatch):
    monkeypatch.setattr(template_limits, 'TIME_LIMIT_S', 0.3)
    loop = (
        '{% if "slow" in messages[0].content %}{% for a in range(99999) %}'
        '{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}'
    )
    chat = ChatRenderer(loop + ORDINARY, {}, frozenset(['<|end|>']))
    for _ in range(2):
        with pytest.raises(UserError, match=r'it takes more than 0\.3 seconds'):
            chat.prompt('slow')
        assert chat.prompt('fast') == '<|user|>fast<|end|><|assistant|>'


def test_ordinary_templates_render_as_in_jinja_and_long_texts_too():
    chat = ChatRenderer(ORDINARY, {}, frozenset(['<|end|>']))
    text = 'Wörter {%s} %d ' * 2**16
    assert chat.prompt(text) == f'<|user|>{text}<|end|><|assistant|>'
    source = (
        '{% set ns = namespace(found=false, parts=[]) %}{% set head = ("a", "b") %}'
        '{% for m in messages[::-1] %}{% if loop.last %}{% set ns.found = true %}{% endif %}'
        '{{ loop.index0 % 2 }}{{ loop.length }}{{ m.content.split("</think>")[-1].lstrip("\n") }}'
        '{{ "%s|%s"|format(m.role, m.content|length) }}{{ m|tojson }}{{ m.items()|list|length }}'
        '{% endfor %}{{ ns.found }}{{ head|join(", ") }}{{ messages|map(attribute="role")|list }}'
        '{% for key, value in {"x": 1, "y": [2, 3]}.items() recursive %}{{ key }}={{ value }};'
        '{% endfor %}{{ "a" in head }}{{ 2 ** 10 + 3 * 4 }}{{ "-" * 3 }}'
    )
    environment = template_limits.LimitedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain = template_limits.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True
    )
    messages = [{'role': r, 'content': f'x</think>\n{r} 1'} for r in ('user', 'assistant', 'user')]
    environment.restart_timer()
    found = environment.from_string(source).render(messages=messages)
    assert found == plain.from_string(source).render(messages=messages)
