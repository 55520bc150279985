#!/usr/bin/env bash
# What passing files costs those who serve: a coordinator and two workers serve in network namespaces
# with shaped cables, and a fourth box takes files of the pack from all three at once, every other
# window of time. Prints a row of docs/performance.md's table. As root; needs iproute2, tc and curl.
#
#   bench/file_share.sh BUILD PACK TOKENIZER KBIT SHARE [ROUNDS [SECONDS]]
#
# BUILD: where `caravan` and bench/file_share_bench were built; PACK: `caravan synth` makes one;
# TOKENIZER: the directory of a model with one; KBIT: of each cable, either way; SHARE: --share-files.
set -euo pipefail

build=$(realpath "$1") pack=$(realpath "$2") tokenizer=$(realpath "$3") kbit=$4 share=$5
rounds=${6:-5} seconds=${7:-10}
jobs=8
id=share$$
work=$(mktemp -d)

cleanup() {
  # Their own, by id; what a namespace still holds goes with it.
  kill $(jobs -p) 2>/dev/null || true
  wait 2>/dev/null || true
  for box in 0 1 2 3; do ip netns del "$id-$box" 2>/dev/null || true; done
  ip netns del "$id-hub" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

# Not by a function where it goes to the background: the process must be the one that is killed.
in_box() { local box=$1; shift; ip netns exec "$id-$box" "$@"; }

ip netns add "$id-hub"
ip -n "$id-hub" link add bridge type bridge
ip -n "$id-hub" link set bridge up
for box in 0 1 2 3; do
  ip netns add "$id-$box"
  ip -n "$id-hub" link add "port$box" type veth peer name eth0 netns "$id-$box"
  ip -n "$id-hub" link set "port$box" master bridge up
  ip -n "$id-$box" link set eth0 up
  ip -n "$id-$box" link set lo up
  ip -n "$id-$box" address add "10.77.0.$((box + 1))/24" dev eth0
  shape="root tbf rate ${kbit}kbit burst 16kb latency 1s"
  tc -n "$id-$box" qdisc add dev eth0 $shape
  tc -n "$id-hub" qdisc add dev "port$box" $shape
done

ip netns exec "$id-0" "$build/caravan" coordinator --model "$pack" --tokenizer "$tokenizer" \
  --listen 10.77.0.1:7070 --http 127.0.0.1:8080 --insecure --workers 2 --share-files "$share" \
  --state "$work/state.db" >"$work/coordinator.log" 2>&1 &
for box in 1 2; do
  ip netns exec "$id-$box" "$build/caravan" worker --coordinator 10.77.0.1:7070 --name "box-$box" \
    --listen "10.77.0.$((box + 1)):7071" --insecure --threads 1 --ram 1GiB --model "$pack" \
    --share-files "$share" >"$work/worker-$box.log" 2>&1 &
done

ask() {  # client SEED: one reply after the other
  for ((n = 0; ; ++n)); do
    in_box 0 curl -sS -o /dev/null http://127.0.0.1:8080/v1/completions \
      -H 'Content-Type: application/json' -d "{\"prompt\": \"What is $1 + $n?\", \"seed\": $1,
        \"temperature\": 1, \"max_tokens\": 400, \"ignore_eos\": true}" 2>/dev/null || sleep 1
  done
}
for ((job = 1; job <= jobs; ++job)); do ask "$job" & done

tokens() {
  in_box 0 curl -s http://127.0.0.1:8080/metrics |
    awk '$1 == "caravan_generated_tokens_total" {print $2}'
}
until [ "$(tokens | cut -d. -f1)" -gt 500 ] 2>/dev/null; do sleep 0.5; done

rate() {  # tokens/s of the next window
  local before after begin end
  begin=$(date +%s.%N) before=$(tokens)
  sleep "$seconds"
  end=$(date +%s.%N) after=$(tokens)
  awk "BEGIN {print ($after - $before) / ($end - $begin)}"
}
median() { sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }

without=() with=()
for ((round = 0; round < rounds; ++round)); do
  without+=("$(rate)")
  ip netns exec "$id-3" "$build/bench/file_share_bench" --pack "$pack" --seconds $((seconds + 2)) \
    --source 10.77.0.1:7070 10.77.0.2:7071 10.77.0.3:7071 >"$work/taken" &
  taker=$!
  sleep 1
  with+=("$(rate)")
  wait "$taker"
  awk '{print $2}' "$work/taken" >>"$work/rates"
done
without+=("$(rate)")

# Each window with files against those before and after it: the machine's own moods cancel.
for ((round = 0; round < rounds; ++round)); do
  awk "BEGIN {print 200 * ${with[round]} / (${without[round]} + ${without[round + 1]})}"
done >"$work/ratios"
printf '| %s Mbit/s | %s%% | %.1f | %.1f | %.1f%% | %.2f |\n' "$((kbit / 1000))" "$share" \
  "$(printf '%s\n' "${without[@]}" | median)" "$(printf '%s\n' "${with[@]}" | median)" \
  "$(median <"$work/ratios")" "$(median <"$work/rates")"
