"""Write a report about trained runs: a self-contained report.html, report.md, numbers and plots.

The sections of the report:
    summary     scores, what was learned, and what to look at, in a few sentences
    scores      scores and losses of each seed group, their differences with confidence intervals,
                and rows of a table of the paper
    tasks       loss of each task over training, and its scores
    answers     example answers of each task, right and wrong, before and after training
    seesaw      negative transfer: gain or loss of each task from training together with others
    runs        numbers of steps, tokens and examples, losses and scores of each run, and its loss
                over training
    similarity  similarity of the experts to each other, next to its value before training and its
                expected value for random subspaces (Figure 2 of the paper)
    spectra     number of directions that the projections of the experts use, next to the number
                for the same projections before training, or for random matrices (Figure 3)
    routing     routing of tokens by task and layer; this runs the model on held-out questions
    costs       parameters by part and time by activity
Similarity, spectra and routing read checkpoints. Only routing needs the base model and the data.

Runs must share one base model. If --workdir names a directory of runs, all its finished runs are
reported on. Runs named NAME-seed0, NAME-seed1, … form a seed group, which is averaged into one row.
--table adds the rows of a table of the paper, or of other papers: commonsense, math and code. All
runs must be scored on the tasks of this table.

Examples:
    python -m experiments.analyze --workdir=runs/quickstart
    python -m experiments.analyze --workdir=runs/malora --workdir=runs/malora-chain_sum --output=out
    python -m experiments.analyze --workdir=runs/table2 --table=table2 --norouting
    python -m experiments.analyze --workdir=runs/commonsense --table=commonsense
"""

from absl import flags

from experiments import cli
from malora_jax import cloud_storage
from malora_jax.analysis.page import section_to_markdown
from malora_jax.analysis.report import write_report
from malora_jax.errors import UserError, out_of_range
from malora_jax.runs.published import TABLES

_WORKDIRS = flags.DEFINE_multi_string(
    'workdir',
    None,
    # absl continues this text: "; repeat this option to specify a list of values".
    'Required: directory of a run, or directory that contains runs; local or gs://BUCKET/PATH',
    required=True,
)
_OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'Directory to write the report into; default: analysis/ in the first --workdir.',
)
_TABLE = flags.DEFINE_enum(
    'table',
    None,
    list(TABLES),
    'Table of the MALoRA paper, or of papers on other benchmarks (commonsense, math, code), whose '
    'rows are shown next to the runs.',
)
_WEIGHTS = cli.define_weights_flag()
_UNFINISHED = flags.DEFINE_bool('unfinished', False, 'Also report on runs that have not finished.')
_ROUTING = flags.DEFINE_bool(
    'routing',
    True,
    'Report how the routers assign tokens to experts. This runs the model on held-out questions, '
    'so it needs the base model and the data.',
)
_QUESTIONS = flags.DEFINE_integer(
    'questions',
    32,
    'Maximum number of held-out questions per task on which the routing of tokens to experts is '
    'measured; 0 = all.',
)


def main() -> None:
    """Write the report, and print its scores and its location.

    Raises:
        UserError: --workdir is empty, or --questions is negative.
    """
    if not all(_WORKDIRS.value):
        raise UserError('--workdir is empty; it must name a directory.')
    if _QUESTIONS.value < 0:
        raise out_of_range('--questions', _QUESTIONS.value, 'at least 0')
    workdirs = [cloud_storage.localize(path) for path in _WORKDIRS.value]
    output = workdirs[0] / 'analysis' if _OUTPUT.value is None else cli.flag_path(_OUTPUT)
    sections = write_report(
        workdirs,
        output,
        table=_TABLE.value,
        weights=_WEIGHTS.value,
        allow_unfinished=_UNFINISHED.value,
        routing=_ROUTING.value,
        max_questions=_QUESTIONS.value,
    )
    for section in sections:
        if section.name == 'scores':
            print(section_to_markdown(section), end='\n\n')
    path = output / 'report.html'
    print(f'{cloud_storage.remote_path(path)}: {path.stat().st_size / 1e6:.1f} MB.')


if __name__ == '__main__':
    cli.run_without_config(main)
