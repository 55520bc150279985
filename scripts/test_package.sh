#!/usr/bin/env bash
# Usage: scripts/test_package.sh [PACKAGE]     (default: what scripts/package.sh makes)
# Installs the Debian package into a fresh system of this machine's release (from Debian's mirror, some
# 350 MB, thrown away at the end), boots that, serves the bundled model there by the units, kills a
# worker, and then removes and purges the package. Needs root, debootstrap, systemd-nspawn (Debian:
# systemd-container) and the mirror; says SKIPPED and ends with 77 where one is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
  echo "test_package.sh: SKIPPED: $1"
  exit 77
}
[ "$(id -u)" -eq 0 ] || skip "not root"
for program in debootstrap systemd-nspawn; do
  command -v "$program" >/dev/null || skip "no $program"
done
package=$(realpath "${1:-$(scripts/package.sh)}")

scratch=$(mktemp -d)
root=$scratch/root
trap 'rm -rf "$scratch"' EXIT
# shellcheck disable=SC1091
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
echo "test_package.sh: a fresh $release"
debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus "$release" "$root" \
  >"$scratch/debootstrap.log" 2>&1 || {
  grep -qiE 'couldn.t download|failed getting|invalid release' "$scratch/debootstrap.log" &&
    skip "no mirror can be reached"
  tail -n 20 "$scratch/debootstrap.log" >&2
  exit 1
}

# What is there before, and after: without what apt and dpkg keep about packages, and systemd about boots.
list_files() {
  (cd "$root" && find . -xdev \
    \( -path ./var/lib/apt -o -path ./var/lib/dpkg -o -path ./var/lib/systemd -o -path ./var/cache -o \
    -path ./var/log -o -path ./var/tmp -o -path ./run -o -path ./tmp \) -prune -o -print) | sort
}
in_root() { DEBIAN_FRONTEND=noninteractive chroot "$root" "$@"; }
list_files >"$scratch/before"
cp "$package" "$root/srv/caravan.deb"
cp -r models/tiny-r1 "$root/srv/"
in_root apt-get update -q >"$scratch/apt.log"
in_root apt-get install -y -q --no-install-recommends /srv/caravan.deb >>"$scratch/apt.log" 2>&1 || {
  tail -n 20 "$scratch/apt.log" >&2
  exit 1
}
in_root caravan --help >/dev/null
for page in caravan caravan-worker caravan-certs-init; do
  zcat "$root/usr/share/man/man1/$page.1.gz" | grep -q '^\.SH OPTIONS' || {
    echo "test_package.sh: no manual page $page" >&2
    exit 1
  }
done

# The rest happens inside, as the only service of a boot.
cat >"$root/srv/check.sh" <<'CHECK'
#!/bin/bash
set -eEuo pipefail
trap 'echo "FAILED: line $LINENO: $BASH_COMMAND"; journalctl -u "caravan-*" -n 60 -o cat --no-pager' ERR
state=/var/lib/caravan
expect() { "$@" || { echo "not so: $*"; return 1; }; }
property() { systemctl show -p "$2" --value "$1"; }
until_true() { for _ in $(seq 600); do "$@" && return; sleep 0.1; done; echo "never: $*"; return 1; }
is_serving() { caravan status 2>/dev/null | grep -q '^pipeline *serving'; }
answers() { caravan run 'What is 487 + 358?' 2>/dev/null | grep -q '487 + 358 = 845'; }
is_restarted() { [ "$(property caravan-worker NRestarts)" = "$1" ]; }

# Installed, and nothing runs or would.
for unit in caravan-coordinator caravan-worker caravan-worker@; do
  expect [ "$(systemctl is-enabled $unit.service || true)" = disabled ]
done
expect [ -z "$(systemctl list-units --no-legend 'caravan-*')" ]
expect [ "$(stat -c %U:%a /etc/caravan/caravan-worker.toml)" = root:644 ]
systemd-analyze verify --man=no caravan-coordinator.service caravan-worker.service caravan-worker@b.service

# Configured: two workers on one box. They serve, and their state is their own.
cd /etc/caravan
sed -i 's|^#model = .*|model = "/srv/tiny-r1"|; s|^#listen = .*|listen = "127.0.0.1:7070"|; s|^#workers = .*|workers = 2|' \
  caravan-coordinator.toml
sed -i 's|^#coordinator = .*|coordinator = "127.0.0.1:7070"|; s|^#listen = .*|listen = "127.0.0.1:0"|; s|^#ram = .*|ram = "256MiB"|' \
  caravan-worker.toml
cp caravan-worker.toml caravan-worker@b.toml
systemctl enable --now --quiet caravan-coordinator caravan-worker caravan-worker@b
until_true is_serving
expect answers
expect [ "$(stat -c %U:%a $state/caravan-coordinator/caravan.db)" = caravan:600 ]
expect [ "$(stat -c %U:%a $state/caravan-worker)" = caravan:750 ]
expect [ -d "$state/caravan-worker@b" ]

# A worker that dies is started anew, one that is stopped leaves with code 0.
systemctl kill --signal=KILL caravan-worker
until_true is_restarted 1
until_true answers
systemctl stop caravan-worker@b
expect [ "$(property caravan-worker@b Result)" = success ]
systemctl start caravan-worker@b
until_true answers

# Installed once more: what runs goes on with the new binary, and the configuration stays.
before=$(property caravan-coordinator MainPID)
dpkg -i /srv/caravan.deb >/dev/null
expect [ "$(property caravan-coordinator MainPID)" != "$before" ]
expect grep -q '^model = "/srv/tiny-r1"' caravan-coordinator.toml
until_true answers

# Removed: nothing runs or would; configuration and state stay.
dpkg -r caravan >/dev/null
expect [ -z "$(pgrep -x caravan 2>/dev/null || true)" ]
expect [ -z "$(find /usr /etc/systemd -name '*caravan*')" ]
expect [ -f caravan-coordinator.toml ]
expect [ -f $state/caravan-coordinator/caravan.db ]
cd /

# Purged: neither stays. What lies elsewhere is somebody else's.
dpkg -P caravan >/dev/null 2>&1
expect [ ! -e /etc/caravan ]
expect [ ! -e $state ]
expect [ -f /srv/tiny-r1/config.json ]
echo PASSED
CHECK
cat >"$root/etc/systemd/system/check.service" <<'UNIT'
[Unit]
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/bin/bash /srv/check.sh
StandardOutput=file:/srv/check.log
StandardError=inherit
TimeoutStartSec=300
[Install]
WantedBy=default.target
UNIT
in_root systemctl enable --quiet check.service

echo "test_package.sh: booting it"
# Where there is no systemd outside, nspawn can ask nobody for a scope of its own.
without_systemd=()
[ -d /run/systemd/system ] || without_systemd=(--register=no --keep-unit)
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout 600 systemd-nspawn --quiet --directory "$root" \
  --private-network --boot "${without_systemd[@]}" </dev/null >"$scratch/console.log" 2>&1 || true
cat "$root/srv/check.log" 2>/dev/null || tail -n 30 "$scratch/console.log"
[ "$(tail -n 1 "$root/srv/check.log" 2>/dev/null)" = PASSED ]

# And what the package brought along.
rm -r "$root/srv/tiny-r1" "$root/srv/caravan.deb" "$root/srv/check.sh" "$root/srv/check.log"
rm -r "$root/etc/systemd/system/check.service" "$root/etc/systemd/system/default.target.wants"
in_root apt-get autoremove -y -q --purge >>"$scratch/apt.log" 2>&1
list_files >"$scratch/after"
left=$(comm -13 "$scratch/before" "$scratch/after")
if [ -n "$left" ]; then
  echo "test_package.sh: left behind:" >&2
  echo "$left" >&2
  exit 1
fi
echo "test_package.sh: installed, served, removed, purged: nothing is left"
