"""Sphinx configuration of the documentation site; `make docs` builds it."""

import importlib.metadata

import docutils.nodes
import latex2mathml.converter

project = 'malora_jax'
author = 'The malora_jax authors'
copyright = 'the malora_jax authors, Apache License 2.0'
release = version = importlib.metadata.version('malora_jax')

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
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

# Names in backticks in docstrings. Quotes and dashes stay as they are, as in --workdir.
default_role = 'code'
smartquotes = False
# Formulas as MathML, which browsers show without scripts and without a network.
html_math_renderer = 'mathml'


def _mark_examples(app, what, name, obj, options, lines):
    """Mark code in docstrings as literal blocks, as Sphinx expects.

    Code follows an empty line after a line that ends with a colon, or stands in an `Example:`
    section.
    """
    marked, in_code = [], False
    for number, line in enumerate(lines):
        following = [*lines[number + 1 : number + 3], '', '']
        if line and not line.startswith(' '):
            in_code = False
        is_before_code = (
            line.rstrip().endswith(':')
            and not line.rstrip().endswith('::')
            and not following[0].strip()
            and _indentation(following[1]) > _indentation(line)
        )
        marked.append(f'    {line}' if in_code else line + ':' * is_before_code)
        if line.strip() == 'Example:' and not following[0].rstrip().endswith(':'):
            marked += ['    ::', '']
            in_code = True
    lines[:] = marked


def _indentation(line):
    return len(line) - len(line.lstrip())


def _inline_math(writer, node):
    writer.body.append(latex2mathml.converter.convert(node.astext()))
    raise docutils.nodes.SkipNode


def _block_math(writer, node):
    writer.body.append(latex2mathml.converter.convert(node.astext(), display='block'))
    raise docutils.nodes.SkipNode


def setup(app):
    """Register the hook, which runs before Napoleon's, and the renderer of formulas."""
    app.connect('autodoc-process-docstring', _mark_examples, priority=400)
    app.add_html_math_renderer('mathml', (_inline_math, None), (_block_math, None))
