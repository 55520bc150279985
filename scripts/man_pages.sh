#!/usr/bin/env bash
# Usage: scripts/man_pages.sh BINARY DIRECTORY
# Writes the manual of the binary `caravan` into DIRECTORY: caravan.1.gz, and one page for each subcommand
# (caravan-certs-init.1.gz is what `man caravan-certs-init` shows). All is made of what --help prints; needs
# help2man.
set -euo pipefail
binary=$(realpath "$1")
directory=$2
command -v help2man >/dev/null || { echo "man_pages.sh: no help2man" >&2; exit 1; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
version=$("$binary" --version)

# The subcommands that the help on standard input lists.
subcommands() { awk '/^[^ ]/ { listed = /^Subcommands:/ } listed && /^  [a-z]/ { print $1 }'; }

# The page of `caravan WORD...`, and those of its subcommands.
page() {
  local name=caravan word help words subs
  for word in "$@"; do name+=-$word; done
  help=$("$binary" "$@" --help)
  words=$(subcommands <<<"$help")
  subs=$(for word in $words; do printf '.BR %s-%s (1),\n' "$name" "$word"; done | sed '$s/,$/./')
  cat >"$scratch/more" <<MORE
[EXIT STATUS]
0: it went well. 1: it ran, and the answer is no, or a job failed. 2: a wrong option, or an input that cannot be
used. 3: somebody who is needed is not there. 130: interrupted.
MORE
  if [ $# -eq 0 ]; then
    cat >>"$scratch/more" <<MORE
[FILES]
.I /etc/caravan/caravan-coordinator.toml
and
.I /etc/caravan/caravan-worker.toml
configure the units of these names;
.I /usr/share/doc/caravan/operations.md
tells how a cluster is set up and looked after.
MORE
  fi
  [ -z "$subs" ] || printf '[SEE ALSO]\n%s\n' "$subs" >>"$scratch/more"
  # A name that is as wide as its column has one space behind it, which to help2man is no column's end.
  printf '#!/bin/sh\n"%s" %s "$@" | sed -E "s/^(.{28}[^ ]) ([^ ])/\\1  \\2/"\n' "$binary" "$*" >"$scratch/caravan"
  chmod +x "$scratch/caravan"
  # NAME is what `man -k` finds it by: one word, and what it does.
  help2man --no-info --section=1 --version-string="$version" --name="$(head -n 1 <<<"$help")" \
    --include="$scratch/more" "$scratch/caravan" |
    sed -E "s/^\.TH CARAVAN /.TH ${name^^} /; /^\.SH NAME/,/^\.SH SYNOPSIS/ s/^caravan[^\\\\]*/$name /" |
    gzip -9n >"$directory/$name.1.gz"
  for word in $words; do page "$@" "$word"; done
}

mkdir -p "$directory"
rm -f "$directory"/caravan*.1.gz
page
