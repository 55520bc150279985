#!/usr/bin/env bash
# Usage: scripts/test.sh [PRESET [CTEST_ARGUMENT...]]     (default: release, every test)
# Installs what is missing, builds, fetches the real DeepSeek-V3 tokenizer, and runs the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
[ $# -gt 0 ] && shift

# Where there is a CUDA compiler: the oldest path of the kernels and the newest, not every card's.
export CUDAARCHS=${CUDAARCHS:-75;90}
scripts/install_packages.sh build test
scripts/fetch_test_data.sh
scripts/build.sh "$preset"
ctest --preset "$preset" -j "$(nproc)" "$@"
