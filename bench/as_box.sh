#!/bin/sh
# Runs a command as one of several boxes that are parts of this machine: caravan bench plan --box-command.
#
#   as_box.sh NUMBER|coordinator COMMAND ARGUMENT...
#
# Box N has BOX_CORES cores (4) of its own, from core N * BOX_CORES on; the coordinator has those behind BOXES (3) boxes, or all
# where there are none. With BOX_DISK_RATE each box reads the disk of BOX_DISK (/) at no more than so many bytes a second, which
# takes root and version 2 of cgroups with the controller io.
set -eu
box=$1; shift
cores=${BOX_CORES:-4}
if [ "$box" = coordinator ]; then
  first=$((${BOXES:-3} * cores)); last=$(($(nproc --all) - 1))
  [ "$first" -le "$last" ] || first=0
else
  first=$((box * cores)); last=$((first + cores - 1))
  if [ -n "${BOX_DISK_RATE:-}" ]; then
    group=/sys/fs/cgroup/caravan-box-$box
    [ -d "$group" ] || { echo +io > /sys/fs/cgroup/cgroup.subtree_control; mkdir "$group"; }
    echo "$(stat -c '%Hd:%Ld' "${BOX_DISK:-/}") rbps=$BOX_DISK_RATE" > "$group/io.max"
    echo $$ > "$group/cgroup.procs"
  fi
fi
exec taskset -c "$first-$last" "$@"
