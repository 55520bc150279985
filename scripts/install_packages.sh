#!/usr/bin/env bash
# Usage: scripts/install_packages.sh USE...
# Installs the packages of scripts/packages.txt for each USE (build, package, test) that are missing. Asks for
# nothing, and needs no root, when none is.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "install_packages.sh: this is no Debian-like system; install what scripts/packages.txt names" \
       "by other means, then run: cmake --preset release && ninja -C build/release" >&2
  exit 1
fi

missing=()
for use in "$@"; do
  while read -r package; do
    # npm may have come without Debian's package.
    [ "$package" = npm ] && command -v npm >/dev/null && continue
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' ||
      missing+=("$package")
  done < <(awk -v use="$use" '$1 == use { print $2 }' scripts/packages.txt)
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "install_packages.sh: these packages are missing and only root can install them:" \
         "${missing[*]}" >&2
    exit 1
  }
  as_root=(sudo)
fi
echo "Installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -q
"${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"
