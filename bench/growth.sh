#!/usr/bin/env bash
# What adding a box and draining it again costs those who are served: two workers serve, a third joins, and
# leaves. Prints tokens/s before, while the next plan is prepared and after, how long no pipeline served, and
# how long it took from the order to the new plan. As docs/performance.md has it. Needs curl and taskset.
#
#   bench/growth.sh BUILD MODEL TOKENIZER [CORES [JOBS [SECONDS [ARCHIVE [LATE_WORKER_FLAGS...]]]]]
#
# BUILD: where `caravan` was built; MODEL: `caravan synth` makes one; TOKENIZER: the directory of a model with
# one; CORES: of each worker, its own (0: all share all); JOBS: clients that ask one question after the other;
# SECONDS: of the windows before and after; ARCHIVE: each worker's --kv-archive (0: none); LATE_WORKER_FLAGS: of the third worker, instead of --model MODEL.
set -euo pipefail

build=$(realpath "$1") model=$(realpath "$2") tokenizer=$(realpath "$3")
cores=${4:-0} clients=${5:-8} seconds=${6:-20}
archive=${7:-0}
late=("${@:8}")
[ ${#late[@]} -gt 0 ] || late=(--model "$model")
work=$(mktemp -d)
log=$work/coordinator.log

cleanup() {
  kill $(jobs -p) 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

now() { date +%s.%N; }
on_cores_of() {  # BOX COMMAND...: from core 1 on, which leaves one to the coordinator
  local box=$1; shift
  if [ "$cores" -eq 0 ]; then "$@"; else
    taskset -c "$((1 + box * cores))-$((box * cores + cores))" "$@"
  fi
}
threads=$cores
[ "$cores" -gt 0 ] || threads=1

start_worker() {  # BOX FLAGS...
  local box=$1; shift
  [ "$archive" = 0 ] || set -- "$@" --kv-archive "$archive" --kv-archive-dir "$work/kv-$box"
  on_cores_of "$box" "$build/caravan" worker --coordinator "$address" --name "box-$box" \
    --listen 127.0.0.1:0 --threads "$threads" "$@" >"$work/worker-$box.log" 2>&1 &
}

"$build/caravan" coordinator --model "$model" --tokenizer "$tokenizer" --listen 127.0.0.1:0 \
  --http 127.0.0.1:0 --workers 2 --state "$work/state.db" --context 2048 >"$work/coordinator.out" 2>"$log" &
until grep -q 'listening' "$log" && grep -qo 'http[^ ]*127.0.0.1:[0-9]*' "$log" "$work/coordinator.out"; do
  sleep 0.1
done
address=$(grep -m1 'listening' "$log" | grep -o '127.0.0.1:[0-9]*' | head -1)
http=$(grep -ho 'http[^ ]*127.0.0.1:[0-9]*' "$log" "$work/coordinator.out" | grep -o '127.0.0.1:[0-9]*' | head -1)
start_worker 0 --model "$model"
start_worker 1 --model "$model"

ask() {  # CLIENT: one reply after the other
  for ((n = 0; ; ++n)); do
    curl -sS -o /dev/null "http://$http/v1/completions" -H 'Content-Type: application/json' \
      -d "{\"prompt\": \"What is $1 + $n?\", \"seed\": $1, \"temperature\": 1, \"max_tokens\": 400,
           \"ignore_eos\": true}" 2>/dev/null || sleep 1
  done
}
for ((client = 1; client <= clients; ++client)); do ask "$client" & done

# Seconds since 1970, and the tokens that were given by then.
watch_tokens() {
  while true; do
    printf '%s %s\n' "$(now)" "$(curl -s "http://$http/metrics" |
      awk '$1 == "caravan_generated_tokens_total" {print $2}')"
    sleep 0.1
  done
}
watch_tokens >"$work/samples" &
until [ "$(awk 'END {print int($2)}' "$work/samples")" -gt 500 ]; do sleep 0.5; done

rate() {  # FROM TO: tokens/s
  awk -v from="$1" -v to="$2" '$1 >= from && $1 <= to {
      if (!n++) {t0 = $1; k0 = $2} t1 = $1; k1 = $2
    } END {if (t1 > t0) printf "%.1f", (k1 - k0) / (t1 - t0); else printf "-"}' "$work/samples"
}
said_at() {  # EVENT PLAN: when the log says so
  date -d "$(grep " $1 plan=$2 " "$log" | head -1 | cut -d' ' -f1)" +%s.%N
}
longest_pause() {  # FROM TO: without a token
  awk -v from="$1" -v to="$2" '$1 >= from && $1 <= to {
      if (k == "" || $2 != k) {if (k != "" && $1 - t > most) most = $1 - t; t = $1; k = $2}
      last = $1
    } END {if (last - t > most) most = last - t; printf "%.1f", most}' "$work/samples"
}

change() {  # WHAT PLAN COMMAND...
  local what=$1 plan=$2 begin ordered serving; shift 2
  begin=$(now)
  sleep "$seconds"
  ordered=$(now)
  "$@"
  until grep -q " pipeline_serving plan=$plan " "$log"; do sleep 0.1; done
  serving=$(said_at pipeline_serving "$plan")
  sleep "$((seconds + 2))"
  printf '| %s | %s | %s | %s | %s | %s | %.1f |\n' "$what" "$(rate "$begin" "$ordered")" \
    "$(rate "$(said_at plan_preparing "$plan")" "$(said_at plan_prepared "$plan")")" \
    "$(rate "$(awk "BEGIN {printf \"%.3f\", $serving + 2}")" "$(now)")" \
    "$(grep " pipeline_serving plan=$plan " "$log" | grep -o 'seconds_without=[0-9.e-]*' | cut -d= -f2)" \
    "$(longest_pause "$ordered" "$(now)")" "$(awk "BEGIN {print $serving - $ordered}")"
}
echo '| what | tokens/s before | while prepared | after | s without a pipeline | longest s without a token | s until it serves |'
echo '| --- | --- | --- | --- | --- | --- | --- |'
change 'a third box joins' 2 start_worker 2 "${late[@]}"
change 'it is drained' 3 "$build/caravan" drain --coordinator "$address" box-2 >"$work/drained"
cat "$work/drained"
grep -h 'stage_prepared\|files_fetched' "$work"/worker-*.log | cut -d' ' -f2- || true
