"""Sphinx configuration of the documentation site; `make docs` builds it."""

import importlib.metadata

project = 'malora_jax'
author = 'The malora_jax authors'
copyright = 'the malora_jax authors, Apache License 2.0'
release = version = importlib.metadata.version('malora_jax')

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
]
exclude_patterns = ['build', 'launch', 'reader_questions.md']
html_theme = 'furo'
html_title = 'malora_jax'
html_static_path = []

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3

# Only what a package lists in `__all__`, with the shapes that the docstrings state.
autodoc_default_options = {'members': True, 'imported-members': True}
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

copybutton_exclude = '.linenos, .gp'
copybutton_prompt_text = r'>>> |\$ '
copybutton_prompt_is_regexp = True

# Names in backticks in docstrings.
default_role = 'code'


def _mark_examples(app, what, name, obj, options, lines):
    """Turn the code of an `Example:` section into a code block, as Sphinx expects."""
    start = next((i for i, line in enumerate(lines) if line.strip() == 'Example:'), None)
    if start is None:
        return
    body = lines[start + 1 :]
    end = next((i for i, line in enumerate(body) if line and not line.startswith(' ')), len(body))
    example, rest = body[:end], body[end:]
    code = next((i for i, line in enumerate(example) if line.rstrip().endswith(':')), None)
    if code is not None and not example[code].strip().startswith(('for', 'def', 'with', 'class')):
        before, example = example[: code + 1], example[code + 1 :]
        while example and not example[0].strip():
            example.pop(0)
        # The code after a sentence may be indented further than the sentence.
        before.append('')
    else:
        before = []
    lines[start + 1 :] = [
        *before,
        '    .. code-block:: python',
        '',
        *('    ' + line for line in example),
        '',
        *rest,
    ]


def setup(app):
    """Register the hook, which runs before Napoleon's."""
    app.connect('autodoc-process-docstring', _mark_examples, priority=400)
