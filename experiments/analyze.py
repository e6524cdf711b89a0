"""Writes a report about trained runs: report.html, which needs nothing beside it, and its plots.

It shows how alike the experts are and how many directions they use (Figures 2 and 3 of the paper),
each beside a control; how tokens are routed, by task and layer and over training; losses and
scores by task; parameters and time by part. With several runs on one base these stand side by
side, and runs of one method are compared with each other: give runs of single tasks to see what
training together changes.

Example:
    python -m experiments.analyze --workdir=runs/quickstart
    python -m experiments.analyze --workdir=runs/malora --workdir=runs/malora_chain_sum --output=out
"""

import pathlib

from absl import flags

from experiments import cli
from malora_jax.analysis.report import write_report
from malora_jax.errors import UserError, out_of_range

_WORKDIRS = flags.DEFINE_multi_string(
    'workdir', None, 'Directory of a run; may be given several times.', required=True
)
_OUTPUT = flags.DEFINE_string(
    'output', None, "Directory for the report; default: analysis in the first run's."
)
_WEIGHTS = cli.define_weights()
_UNFINISHED = flags.DEFINE_bool('unfinished', False, 'Analyse runs that have not ended, too.')
_ROUTING = flags.DEFINE_bool(
    'routing', True, 'Run the model on held-out questions; all else needs neither base nor data.'
)
_QUESTIONS = flags.DEFINE_integer(
    'questions', 32, 'For the routing: at most so many held-out questions a task; 0 = all.'
)


def main() -> None:
    """Writes the report, and says where it is."""
    if not all(_WORKDIRS.value):
        raise UserError('--workdir is empty; it must name a directory.')
    if _QUESTIONS.value < 0:
        raise out_of_range('--questions', _QUESTIONS.value, 'at least 0')
    workdirs = [pathlib.Path(path).expanduser() for path in _WORKDIRS.value]
    output = workdirs[0] / 'analysis' if _OUTPUT.value is None else cli.directory(_OUTPUT)
    path = write_report(
        workdirs,
        output,
        weights=_WEIGHTS.value,
        unfinished=_UNFINISHED.value,
        routing=_ROUTING.value,
        questions=_QUESTIONS.value,
    )
    print(f'{path}: {path.stat().st_size / 1e6:.1f} MB.')


if __name__ == '__main__':
    cli.run_without_config(main)
