#!/usr/bin/env bash
# Usage: scripts/package.sh [DIRECTORY]     (default: build/package)
# Installs what is missing, builds, and writes the Debian package into DIRECTORY; prints its path. It fits the
# release of Debian that it is built on, and has what can use cards where there is a CUDA compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=$(realpath -m "${1:-build/package}")

scripts/install_packages.sh package >&2
scripts/build.sh release caravan_manual >&2
mkdir -p "$directory"
printed=$(cd build/release && cpack -B "$directory" 2>&1) || { echo "$printed" >&2; exit 1; }
rm -rf "$directory/_CPack_Packages"
sed -n 's/^CPack: - package: \(.*\) generated\.$/\1/p' <<<"$printed"
