#!/usr/bin/env bash
# From a Wikipedia dump and English datasets to a release, a trained model and four evaluations.
#
#   bash experiments/ultralink/whole_path.sh SETTINGS.sh
#
# Repeat the command to resume: finished steps are not run again, and no request is paid for twice.
# SETTINGS.sh is a shell script that sets these variables. Paths must not contain spaces.
#
#   output=data                               # everything is written here
#   wiki=wiki                                 # has a folder for each language: wiki/en, wiki/zh, …
#   english_chat='--input=sharegpt.json'      # flags of `import`
#   english_math='--input=MetaMathQA-395K.json --license=MIT'
#   english_code='--input=magicoder_oss.jsonl,magicoder_evol.jsonl'
#   teacher='--llm=MODEL --base-url=http://127.0.0.1:8000/v1'  # makes the data
#   judge='--llm=MODEL'                       # compares answers
#   omgeval=OMGEval                           # copy of github.com/blcuicall/OMGEval
#   mgsm=mgsm                                 # folder with mgsm_en.tsv, mgsm_zh.tsv, …
#   humaneval=HumanEval.jsonl.gz              # the original problems
#   humaneval_translation=humaneval_es.json   # the problems to solve
#   humaneval_language=es
#
# These have defaults:
#
#   languages='en zh ru fr es'                # de and ja, too
#   tokenizer=llama2-13b                      # limits the lengths of documents and dialogues
#   report_tokenizer=cl100k
#   math_sample=34000                         # problems to translate into each language
#   code_sample=17000
#   config=configs/ultralink_lm.py:malora     # of the model to train
#   harness_tasks=                            # instead of ARC, HellaSwag and MMLU in each language;
#                                             # the word LANGUAGE stands for its code
#   python=python
#
# These add flags, and are empty by default: documents_flags, dialogues_flags, translate_flags,
# train_flags, answer_flags (of `answers` and `mgsm`) and harness_flags.

set -euo pipefail

if [ $# -ne 1 ] || [ ! -f "$1" ]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi

languages='en zh ru fr es'
tokenizer=llama2-13b
report_tokenizer=cl100k
math_sample=34000
code_sample=17000
config=configs/ultralink_lm.py:malora
harness_tasks=
python=python
documents_flags= dialogues_flags= translate_flags= train_flags= answer_flags= harness_flags=
case $1 in */*) . "$1" ;; *) . "./$1" ;; esac
for name in output wiki english_chat english_math english_code teacher judge omgeval mgsm \
  humaneval humaneval_translation humaneval_language; do
  if [ -z "${!name:-}" ]; then
    echo "$1 does not set $name; see $0 without arguments." >&2
    exit 2
  fi
done

data=$output/data release=$output/release model=$output/model results=$output/results
ultralink="$python -m experiments.ultralink"

# Run a command as a step with a name; in the first pass through all steps, only count it.
step() {
  number=$((number + 1)) current=$1
  shift
  [ -n "$total" ] || return 0
  printf '\n== %s, step %d of %d: %s\n' "$(date +%T)" $number "$total" "$current"
  "$@"
}

stopped() {
  status=$?
  if [ $status -ne 0 ] && [ -n "$total" ]; then
    echo "Stopped at step $number of $total, $current (exit status $status). After a correction," \
      'repeat the command to resume.' >&2
  fi
}

# Run a command that does not resume by itself, unless the file that it writes last exists.
unless() {
  local file=$1
  shift
  if [ -e "$file" ]; then
    echo "There is $file already."
  else
    "$@"
  fi
}

# Write the output of a command to a file, which exists only when the command has finished.
write() {
  local file=$1
  shift
  mkdir -p "$(dirname "$file")"
  "$@" > "$file.part"
  mv "$file.part" "$file"
  echo "The output is in $file."
}

once() {
  unless "$1" write "$@"
}

# Run a stage of an evaluation, and also write its summary to a file.
score() {
  local file=$1
  shift
  mkdir -p "$(dirname "$file")"
  "$@" | tee "$file"
}

# Find missing files before the first request.
check_inputs() {
  local language folder path
  for path in "$humaneval" "$humaneval_translation"; do need "$path"; done
  for language in $languages; do
    need "$wiki/$language"
    need "$mgsm/mgsm_$language.tsv"
    folder=$(omgeval_folder "$language")
    if [ -n "$folder" ]; then
      need "$omgeval/model_outputs/$folder/gpt4.json"
      need "$omgeval/evaluator_prompts/gpt4_template/$language.txt"
    fi
  done
}

need() {
  if [ ! -e "$1" ]; then
    echo "There is no $1." >&2
    exit 2
  fi
}

english_rows() {
  step 'import English chats' $ultralink import $english_chat --output="$data/en/chat"
  step 'import English mathematics' $ultralink import $english_math --output="$data/en/math"
  step 'import English code' $ultralink import $english_code --output="$data/en/code"
}

dialogues() {
  for language in $languages; do
    local folder=$data/$language
    step "documents, $language" $ultralink documents --language="$language" \
      --input="$wiki/$language" --tokenizer="$tokenizer" $documents_flags \
      --output="$folder/documents"
    step "dialogues, $language" $ultralink dialogues --input="$folder/documents" $teacher \
      --tokenizer="$tokenizer" $dialogues_flags --output="$folder/dialogues"
  done
}

translations() {
  step 'criteria' $ultralink criteria --input="$data/en/chat" $teacher --output="$data/en/agnostic"
  for language in $languages; do
    [ "$language" != en ] || continue
    local translate="$ultralink translate --language=$language $teacher $translate_flags"
    local folder=$data/$language
    step "translate chats, $language" $translate --input="$data/en/agnostic" --output="$folder/chat"
    step "translate mathematics, $language" $translate --input="$data/en/math" \
      --sample="$math_sample" --output="$folder/math"
    step "translate code, $language" $translate --input="$data/en/code" --sample="$code_sample" \
      --output="$folder/code"
  done
}

release_and_report() {
  local rows=$data/en/chat,$data/en/math,$data/en/code stages
  for language in $languages; do
    local folder=$data/$language
    rows=$rows,$folder/dialogues
    [ "$language" = en ] || rows=$rows,$folder/chat,$folder/math,$folder/code
  done
  stages=$rows,$data/en/agnostic$(printf ",$data/%s/documents" $languages),$data/pruned
  step 'prune' $ultralink prune --input="$rows" --output="$data/pruned"
  step 'export' unless "$release/README.md" \
    $ultralink export --input="$data/pruned" --output="$release"
  step 'report' unless "$output/report/report.md" $ultralink report --input="$data/pruned" \
    --stages="$stages" --tokenizer="$report_tokenizer" --output="$output/report"
}

# Train the model, or score it with the same config: HumanEval is named at training, because a run
# keeps its config. It has 164 problems; as many chats of each language are held out. Translations
# have broken rows, such as those with a translated name of the function; they are not scored.
with_config() {
  local files=
  for language in $languages; do
    files="$files'$language=$release/training/$language.jsonl',"
  done
  "$python" -m "$1" --config="$config" --workdir="$model" --config.data.files="($files)" \
    --config.data.directory="$output/datasets" --config.data.held_out=164 \
    --config.evaluation.tasks="('humaneval',)" --config.data.skip_broken \
    --config.data.sources="('humaneval/test=$humaneval_translation',)" $train_flags
}

# Rows with faults do not end the path: the exit status 1 means that there are some.
check_humaneval() {
  local status=0
  $ultralink check_humaneval --language="$humaneval_language" --input="$humaneval_translation" \
    --originals="$humaneval" || status=$?
  [ $status -le 1 ] || return $status
}

omgeval_folder() {
  case $1 in
    en) echo english ;;
    zh) echo chinese ;;
    ru) echo russia ;;
    fr) echo french ;;
    es) echo spanish ;;
  esac
}

default_harness_tasks() {
  case $1 in
    en) echo arc_challenge,hellaswag,mmlu ;;
    zh) echo arc_zh,m_mmlu_zh ;; # There is no Chinese HellaSwag,
    ja) ;;                       # and nothing in Japanese.
    *) echo "arc_$1,hellaswag_$1,m_mmlu_$1" ;;
  esac
}

evaluations() {
  local folder tasks baseline
  step 'HumanEval' once "$results/humaneval.json" with_config experiments.evaluate
  for language in $languages; do
    local scores=$results/$language llm="--llm=local:$model"
    step "MGSM, $language" score "$scores/mgsm.txt" $ultralink mgsm --language="$language" \
      --input="$mgsm/mgsm_$language.tsv" $llm $answer_flags --output="$scores/mgsm"
    folder=$(omgeval_folder "$language")
    if [ -n "$folder" ]; then
      # This file has all questions, in English, too.
      baseline=$omgeval/model_outputs/$folder/gpt4.json
      local compare="$ultralink judge --language=$language --input=$scores/answers $judge"
      step "OMGEval, answers, $language" score "$scores/answers.txt" $ultralink answers \
        --input="$baseline" $llm $answer_flags --output="$scores/answers"
      step "OMGEval, both orders, $language" score "$scores/both_orders.txt" \
        $compare --baseline="$baseline" --output="$scores/both_orders"
      step "OMGEval, its protocol, $language" score "$scores/omgeval.txt" \
        $compare --baseline="$baseline" --protocol=omgeval --output="$scores/omgeval" \
        --template="$omgeval/evaluator_prompts/gpt4_template/$language.txt"
    else
      step "OMGEval, $language" echo "There is none: OMGEval has no answers in $language."
    fi
    tasks=${harness_tasks//LANGUAGE/$language}
    tasks=${tasks:-$(default_harness_tasks "$language")}
    if [ -n "$tasks" ]; then
      step "harness, $tasks" once "$scores/harness.txt" "$python" -m experiments.harness \
        --model_args "workdir=$model" --tasks "$tasks" --output_path "$scores/harness" \
        $harness_flags
    else
      step "harness, $language" echo "There is none: the harness has no such tasks in $language."
    fi
  done
}

# Print the first value of a field of HumanEval's scores.
json() {
  sed -n "s/^ *\"$1\": \([^,]*\),*$/\1/p" "$results/humaneval.json"
}

# Write the scores of all evaluations to one file, and print them.
summarize() {
  local scores file
  echo "HumanEval, $humaneval_language: pass@1 $(json average) for $(json examples) problems;" \
    "$(tail -n 1 "$results/humaneval_check.txt")"
  for language in $languages; do
    scores=$results/$language
    for file in mgsm both_orders omgeval; do
      [ ! -e "$scores/$file.txt" ] || echo "$file, $language: $(tail -n 1 "$scores/$file.txt")"
    done
    [ ! -e "$scores/harness.txt" ] || grep '^|' "$scores/harness.txt"
  done
}

main() {
  number=0
  step 'check the inputs' check_inputs
  step 'check HumanEval' once "$results/humaneval_check.txt" check_humaneval
  english_rows
  dialogues
  translations
  release_and_report
  step 'train' with_config experiments.train
  evaluations
  step 'scores' score "$results/scores.txt" summarize
}

trap stopped EXIT
total=
main
total=$number
main
printf '\nThe release is in %s, the report in %s, and the scores in %s.\n' "$release" \
  "$output/report/report.md" "$results/scores.txt"
