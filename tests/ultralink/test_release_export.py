"""Exports have the format of the released dataset, and importing them restores the rows."""

import asyncio
import gzip
import json
import pathlib
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax import hub
from malora_jax.errors import UserError
from malora_jax.ultralink import paper_statistics, release_export, release_import
from malora_jax.ultralink.conversations import SUBSETS, Conversation
from malora_jax.ultralink.release_import import ImportConfig
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.ultralink.conversations import conversation
from tests.ultralink.helpers import read_rows, write_rows

# Fields of a row of the stage `dialogues`.
DIALOGUE = {
    'id': 'fr-17-0',
    'language': 'fr',
    'title': 'Lyon',
    'document': 'Lyon est une ville.\nElle a deux fleuves.',
    'data': ['Où est Lyon ?', 'En France.', 'Et ses fleuves ?', 'Le Rhône et la Saône.'],
    'kinds': ['initial', 'in_depth'],
}


def lines_of(path):
    return [json.loads(line) for line in path.open(encoding='utf-8')]


def rows():
    return [
        conversation(language, subset, n, turns=1 + n)
        for n in range(3)
        for language in paper_statistics.LANGUAGES
        for subset in SUBSETS
    ]


def import_files(paths, output, **options):
    return asyncio.run(STAGES['import'].run(StageRun(ImportConfig(), paths, output, **options)))


def import_(path, folder, **options):
    output = path / 'imported'
    manifest = import_files(release_import.find_files(folder), output, **options)
    return read_rows(output), manifest


def test_the_document_is_in_the_first_turn(tmp_path):
    source = write_rows(tmp_path / 'dialogues.jsonl', [DIALOGUE])
    assert release_export.export([source], tmp_path / 'out') == {'fr_chat_specific.jsonl': 1}
    assert lines_of(tmp_path / 'out' / 'fr_chat_specific.jsonl') == [
        {
            'id': 'fr_chat_specific_0',
            'data': [
                'Lisez le document ci-dessous, puis répondez à la question qui le suit.\n'
                '<document>\nLyon est une ville.\nElle a deux fleuves.\n</document>\n'
                'Où est Lyon ?',
                'En France.',
                'Et ses fleuves ?',
                'Le Rhône et la Saône.',
            ],
        }
    ]


def test_what_the_trainer_reads(tmp_path):
    from malora_jax.data.file_tasks import file_tasks, read_examples

    source = write_rows(tmp_path / 'rows.jsonl', [DIALOGUE, conversation('fr', 'math', 0)])
    release_export.export([source], tmp_path / 'out')
    first, second = lines_of(tmp_path / 'out' / 'training' / 'fr.jsonl')
    assert first['data'][1:] == DIALOGUE['data'][1:]
    assert second['id'] == 'fr_math_0'
    (task,) = file_tasks(
        [f'fr={tmp_path}/out/training/fr.jsonl'],
        [],
        question_field='question',
        answer_field='answer',
        scorer='rouge_l',
        turns_field='data',
    )
    examples = read_examples(task, task.path).examples
    assert [example.answer for example in examples] == [first['data'][-1], second['data'][-1]]
    assert examples[0].history == (tuple(first['data'][:2]),)


def test_what_is_exported_is_imported_as_it_was(tmp_path):
    source = write_rows(tmp_path / 'rows.jsonl', rows())
    counts = release_export.export([source], tmp_path / 'out')
    assert counts == dict.fromkeys(release_export.FILE_NAMES, 3)
    assert len(release_export.FILE_NAMES) == 20
    found, manifest = import_(tmp_path, tmp_path / 'out', shard_items=7)
    assert manifest.total.items == manifest.total.kept == 60
    by_group = {}
    for row in found:
        by_group.setdefault((row['language'], row['subset']), []).append(row['data'])
    for (language, subset), data in by_group.items():
        assert data == [conversation(language, subset, n, turns=1 + n)['data'] for n in range(3)]
    # Exporting again gives the same files.
    release_export.export([tmp_path / 'imported'], tmp_path / 'again')
    for name in release_export.FILE_NAMES:
        assert (tmp_path / 'again' / name).read_bytes() == (tmp_path / 'out' / name).read_bytes()


@settings(deadline=None)
@given(document=st.text(min_size=1), question=st.text(min_size=1))
def test_the_question_is_found_behind_any_document(document, question):
    if '</document>' in question:
        return
    made = release_export.released_row(
        Conversation('1', 'ru', SUBSETS[0], [question, 'a'], document), 7
    )
    assert release_export.without_document(made['data'][0]) == question.lstrip()


def test_a_question_without_a_document_stays_as_it_is():
    assert (
        release_export.without_document('What is a <document> tag?') == 'What is a <document> tag?'
    )


GOOD = {'id': 'zh_math_1', 'data': ['问', '答']}
BAD = {
    '{"id": "zh_math_2", "data": ["问"': 'not valid JSON',
    '["zh_math_2"]': 'not a JSON object',
    '{"data": ["q", "a"]}': "'id' is None; it must be zh_math_ followed by a number",
    '{"id": "en_math_2", "data": ["q", "a"]}': "'id' is 'en_math_2'; it must be zh_math_",
    '{"id": "zh_math_x", "data": ["q", "a"]}': "'id' is 'zh_math_x'",
    '{"id": "zh_math_1", "data": ["q", "a"]}': "an earlier row has the same id 'zh_math_1'",
    '{"id": "zh_math_2", "data": ["q"]}': 'has an odd number of messages (1)',
    '{"id": "zh_math_2", "data": []}': "'data' must be a non-empty list of messages",
    '{"id": "zh_math_2", "data": ["q", ""]}': "message 2 of 'data' is empty",
    '{"id": "zh_math_2", "data": ["q", null]}': "message 2 of 'data' is not a string",
    '{"id": "zh_math_2", "data": ["q", "\\ud800"]}': 'unpaired surrogate',
    '{"id": "zh_math_2", "data": ["q", "a"], "x": 1}': "unknown field 'x'",
    '': 'not valid JSON',
}


def test_every_bad_row_is_named_and_counted(tmp_path, capsys):
    folder = tmp_path / 'released'
    folder.mkdir()
    for name in release_export.FILE_NAMES:
        write_rows(folder / name, [{**GOOD, 'id': f'{name.removesuffix(".jsonl")}_1'}])
    lines = [json.dumps(GOOD), *BAD, json.dumps({**GOOD, 'id': 'zh_math_3'})]
    (folder / 'zh_math.jsonl').write_text('\n'.join(lines) + '\n', 'utf-8')
    found, manifest = import_(tmp_path, folder)
    assert len(found) == 21
    total = manifest.total
    assert total.dropped == {'bad row': len(BAD)}
    assert total.counts['bad rows of zh_math.jsonl'] == len(BAD)
    assert total.counts['rows of zh_math.jsonl'] == 2
    named = [line for line in capsys.readouterr().err.splitlines() if 'zh_math.jsonl:' in line]
    for number, (line, (bad, message)) in enumerate(zip(named, BAD.items(), strict=True), 2):
        assert line.startswith(f'{folder}/zh_math.jsonl:{number}: ') and message in line, bad


def test_bytes_that_are_no_text_are_a_bad_row(tmp_path, capsys):
    path = tmp_path / 'zh_math.jsonl'
    path.write_bytes(b'{"id": "zh_math_1", "data": ["\xff", "a"]}\n')
    import_files([path], tmp_path / 'imported')
    assert f'{path}:1: the row is not UTF-8' in capsys.readouterr().err


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match='There is no folder'):
        release_import.find_files(tmp_path / 'none')
    for name in release_export.FILE_NAMES[2:]:
        write_rows(tmp_path / name, [])
    with pytest.raises(UserError, match='lacks 2 of the 20 files: en_chat_specific'):
        release_import.find_files(tmp_path)
    for name in release_export.FILE_NAMES[:2]:
        write_rows(tmp_path / name, [])
    (tmp_path / 'fr').mkdir()
    write_rows(tmp_path / 'fr' / 'fr_math.jsonl', [])
    with pytest.raises(UserError, match='have the same name: remove one'):
        release_import.find_files(tmp_path)


def test_a_file_of_another_name(tmp_path):
    path = write_rows(tmp_path / 'it_math.jsonl', [])  # Italian is not built in.
    with pytest.raises(UserError, match='is not one of the 20 released files'):
        import_files([path], tmp_path / 'imported')


def import_inputs(path, *inputs):
    config = ImportConfig(input=inputs)
    run = StageRun(config, release_import.find_inputs(config), path)
    asyncio.run(STAGES['import'].run(run))
    return read_rows(path)


@pytest.mark.parametrize('is_exported', [True, False])
def test_files_of_an_unknown_language_are_not_skipped(tmp_path, is_exported):
    folder = tmp_path / 'release'
    folder.mkdir()
    for name in release_export.FILE_NAMES:
        write_rows(folder / name, [{'id': f'{name.removesuffix(".jsonl")}_0', 'data': ['q', 'a']}])
    if is_exported:
        (folder / 'training').mkdir()
    one = write_rows(folder / 'pt_math.jsonl', [{'id': 'pt_math_0', 'data': ['q', 'a']}])
    message = (
        f'{one} is not one of the 20 released files, such as en_chat_specific.jsonl: for a '
        'language of your own, name its file: --language-files=pt.toml.'
    )
    for path in (folder, one):
        with pytest.raises(UserError) as raised:
            import_inputs(tmp_path / 'out', path)
        assert str(raised.value) == message
    two = write_rows(folder / 'it_code.jsonl', [])
    with pytest.raises(UserError) as raised:
        import_inputs(tmp_path / 'out', folder)
    assert str(raised.value).startswith(f'{two}, {one} are not among the 20 released files')
    assert str(raised.value).endswith(' --language-files=it.toml,pt.toml.')
    assert not (tmp_path / 'out').exists()


def test_other_inputs_are_named_before_their_attribution(tmp_path):
    source = write_rows(tmp_path / 'rows.jsonl', [DIALOGUE, conversation('fr', 'math', 0)])
    release_export.export([source], tmp_path / 'release')
    import_inputs(tmp_path / 'out', tmp_path / 'release' / 'fr_math.jsonl')
    with pytest.raises(UserError, match='out was made from other inputs: choose another --output'):
        import_inputs(tmp_path / 'out', tmp_path / 'release')


@pytest.mark.parametrize('name', ['training', 'training/fr.jsonl', 'renamed.jsonl', 'a.jsonl.gz'])
def test_released_rows_in_other_files_are_refused(tmp_path, name):
    """Their language, subset and source would be lost."""
    source = write_rows(tmp_path / 'rows.jsonl', [conversation('fr', 'math', n) for n in range(2)])
    release = tmp_path / 'release'
    release_export.export([source], release)
    content = (release / 'fr_math.jsonl').read_bytes()
    (release / 'renamed.jsonl').write_bytes(content)
    (release / 'a.jsonl.gz').write_bytes(gzip.compress(content))
    message = (
        r"jsonl(\.gz)?:1 has the id 'fr_math_0' of a released row, but the file is not "
        r'fr_math\.jsonl: import the folder of the release instead\.'
    )
    with pytest.raises(UserError, match=message):
        import_inputs(tmp_path / 'out', release / name)
    assert not (tmp_path / 'out').exists()


def test_released_rows_after_others_are_refused_too(tmp_path):
    rows = [{'id': str(n), 'data': ['Where is Lyon?', 'It is in France.']} for n in range(20)]
    path = write_rows(tmp_path / 'f.jsonl', [*rows, {**rows[0], 'id': 'pt_code_7'}])
    with pytest.raises(UserError, match=r"f\.jsonl:21 has the id 'pt_code_7' of a released row"):
        import_inputs(tmp_path / 'out', path)
    # An imported row has its language and subset.
    own = {**rows[0], 'id': 'fr_code_7', 'language': 'fr', 'subset': 'code'}
    found = import_inputs(tmp_path / 'own', write_rows(tmp_path / 'f.jsonl', [own]))
    assert found == [{**own, 'source': {'id': 'fr_code_7', 'title': 'f.jsonl'}}]


def test_a_folder_with_a_few_released_files(tmp_path):
    source = write_rows(tmp_path / 'rows.jsonl', [DIALOGUE, conversation('fr', 'math', 0)])
    release = tmp_path / 'release'
    release_export.export([source], release)
    whole = import_inputs(tmp_path / 'whole', release)
    shutil.rmtree(release / 'training')
    found = import_inputs(tmp_path / 'out', release)
    assert sorted(found, key=str) == sorted(whole, key=str) and len(found) == 2
    (release / 'old').mkdir()
    shutil.copy(release / 'fr_math.jsonl', release / 'old')
    with pytest.raises(UserError, match='have the same name: remove one'):
        import_inputs(tmp_path / 'other', release)


def test_only_a_commit_is_downloaded(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(
        hub,
        'download_snapshot',
        lambda name, patterns, **options: asked.update(options) or tmp_path,
    )
    with pytest.raises(UserError, match='--revision=main must be a full commit hash'):
        release_import.download('main')
    commit = '0123456789abcdef0123456789abcdef01234567'
    assert release_import.download(commit) == tmp_path
    assert (asked['revision'], asked['repo_type']) == (commit, 'dataset')


def test_an_export_overwrites_nothing(tmp_path, monkeypatch):
    source = write_rows(tmp_path / 'rows.jsonl', [DIALOGUE])
    (tmp_path / 'out').mkdir()
    write_rows(tmp_path / 'out' / 'mine.jsonl', [])
    with pytest.raises(UserError, match=r'out exists already; choose a new directory'):
        release_export.export([source], tmp_path / 'out')
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    with pytest.raises(UserError, match=r'\. exists already; choose a new directory'):
        release_export.export([source], pathlib.Path('.'))


def test_a_failed_export_leaves_nothing(tmp_path):
    source = write_rows(tmp_path / 'rows.jsonl', [DIALOGUE, {'id': '2'}])
    with pytest.raises(UserError, match="jsonl:2 has no 'language'"):
        release_export.export([source], tmp_path / 'out')
    write_rows(source, [])
    with pytest.raises(UserError, match=r'rows\.jsonl: there are no rows to export'):
        release_export.export([source], tmp_path / 'out')
    assert list(tmp_path.iterdir()) == [source]
