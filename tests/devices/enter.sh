#!/bin/sh
# enter.sh ROOT DATA QEMU MAGIC PROGRAM...: run PROGRAM on the system in ROOT, whose writable part is DATA.
# Runs as root of user, mount and process namespaces that end with it: no mount is seen outside, nothing stays.
# Where QEMU is given, programs that begin with MAGIC are run by it, as cores of a Raspberry Pi 5.
set -eu
root=$1 data=$2 qemu=$3 magic=$4
shift 4
cpu=
mount -t proc proc /proc
if [ -n "$qemu" ]; then
  mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
  echo ":lab:M::$magic:$qemu:F" > /proc/sys/fs/binfmt_misc/register
  cpu=QEMU_CPU=cortex-a76
fi
for name in proc sys dev; do mount --rbind "/$name" "$root/$name"; done
mount -t tmpfs tmp "$root/tmp"
mount --bind "$data" "$root/data"
mkdir -p "$data/small"
mount -t tmpfs -o size=1m small "$root/data/small"
# A user without rights, as a phone's shell or a board's user is. This shell stays the first process of its
# namespace: a process that changes its user no longer hears that its parent died.
unshare --user --map-user=2000 --map-group=2000 --root="$root" --wd=/ \
  env -i PATH=/data/bin:/usr/bin:/usr/sbin HOME=/data SHELL=/bin/sh ${cpu:+"$cpu"} "$@"
exit
