#!/usr/bin/env bash
# Usage: scripts/build.sh [PRESET [TARGET...]]     (default: release, everything)
# Installs what is missing, configures and builds into build/PRESET.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
[ $# -gt 0 ] && shift

scripts/install_packages.sh build
# Its own words only when it fails.
configured=$(cmake --preset "$preset" 2>&1) || { echo "$configured" >&2; exit 1; }
cmake --build --preset "$preset" ${*:+--target "$@"}
