#!/usr/bin/env bash
# Usage: scripts/quickstart.sh [PROMPT]
# Installs what is missing, builds Caravan, starts a coordinator and two workers on this machine, asks
# the bundled model PROMPT, shows the plan, and stops everything.
set -euo pipefail
cd "$(dirname "$0")/.."
prompt=${1:-What is 487 + 358?}

scripts/build.sh release caravan
caravan=build/release/caravan

run=$(mktemp -d)
pids=()
stop_all() {
  trap - EXIT INT TERM
  # The last one started leaves first.
  for ((i = ${#pids[@]} - 1; i >= 0; --i)); do kill -TERM "${pids[i]}" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$run"
}
trap stop_all EXIT
trap 'exit 130' INT TERM

"$caravan" coordinator --model models/tiny-r1 --listen 127.0.0.1:0 --workers 2 \
  --state "$run/caravan.db" --address-file "$run/address" >"$run/coordinator.log" 2>&1 &
pids+=($!)
until [ -s "$run/address" ]; do
  kill -0 "${pids[0]}" 2>/dev/null || { cat "$run/coordinator.log" >&2; exit 1; }
  sleep 0.05
done
address=$(cat "$run/address")
for name in box-a box-b; do
  "$caravan" worker --coordinator "$address" --listen 127.0.0.1:0 --name "$name" \
    >"$run/$name.log" 2>&1 &
  pids+=($!)
done

echo "> $prompt"
if ! "$caravan" run --coordinator "$address" "$prompt"; then
  tail -n 5 "$run"/*.log >&2
  exit 1
fi
echo
"$caravan" status --coordinator "$address"
