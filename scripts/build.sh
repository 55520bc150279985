#!/usr/bin/env bash
# Usage: scripts/build.sh [PRESET [TARGET...]]     (default: release, everything)
# Installs what is missing, configures and builds into build/PRESET.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
[ $# -gt 0 ] && shift

scripts/install_packages.sh build
cmake --preset "$preset" --log-level=WARNING
cmake --build --preset "$preset" ${*:+--target "$@"}
