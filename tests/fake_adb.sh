#!/bin/sh
# A stand-in for the adb program: `fake_adb.sh FOLDER ARGUMENT...`. Its phone is this machine, its words are adb 34's.
# In the folder, `devices` is what `adb devices` lists, `features` the device's, `listening` what `adb connect` finds,
# `pull-cable` the command in whose middle the cable is pulled, `calls` a log of the commands.
home=$1
shift
case $1 in -s) echo "$3" ;; *) echo "$1" ;; esac >> "$home/calls"

fail() { printf '%s\n' "$1" >&2; exit 1; }
cable_is_pulled() {
  [ "$(cat "$home/pull-cable" 2>/dev/null)" = "$1" ] && printf '%s\toffline\n' "$serial" > "$home/devices"
}

case $1 in
  devices) echo 'List of devices attached'; cat "$home/devices"; echo; exit ;;
  connect)
    [ "$(cat "$home/listening")" = "$2" ] || { echo "failed to connect to '$2': Connection refused"; exit 0; }
    printf '%s\tdevice\n' "$2" > "$home/devices"
    exit ;;
  disconnect) exit ;;
esac

serial=$2
grep -qxF "$(printf '%s\tdevice' "$serial")" "$home/devices" || fail "adb: device '$serial' not found"
case $3 in
  features) cat "$home/features" ;;
  shell)
    cable_is_pulled shell && exit 0 # as adb does
    cd "$home" && exec sh -c "$4" ;;
  push)
    shift 3
    for folder; do :; done
    [ -e "$home/full" ] && { # adb tells this on its standard output
      echo "adb: error: failed to copy '$1' to '$folder': remote write failed: No space left on device"
      echo "$1: 1 file pushed, 0 skipped. 68.6 MB/s (1500000 bytes in 0.021s)"
      exit 1
    }
    cable_is_pulled push && { echo half > "$folder/${1##*/}"; fail 'adb: error: failed to read copy response'; }
    cp "$@"
    if [ -e "$home/damage" ]; then echo damaged > "$folder/${1##*/}"; fi ;;
  pull)
    [ -e "$4" ] || fail "adb: error: failed to stat remote object '$4': No such file or directory"
    cable_is_pulled pull && { echo half > "$5"; echo "[ 17%] $4"; exit 1; }
    cp "$4" "$5" ;;
esac
