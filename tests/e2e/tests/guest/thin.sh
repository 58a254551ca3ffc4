# What Linux does with a thin volume and its snapshot. Variables: ADDRESS, PORT, NQN.
# The host's hooks: `written MIB` waits until the volume has taken that much, `trimmed MIB` until it and its pool have no more,
# `snapshot` takes a snapshot of the volume and restores it, `forget` deletes the snapshot.
set -euo pipefail

step() { echo "== $* ($(cut -d' ' -f1 /proc/uptime) s)"; }
fail() { echo "FAILED: $*"; exit 1; }
fabric="--transport=tcp --traddr=$ADDRESS --trsvcid=$PORT"
patience="--ctrl-loss-tmo=240 --reconnect-delay=1 --keep-alive-tmo=10 --nr-io-queues=2"

# The block device of a subsystem, once it is there.
device() {
    local tries path
    for tries in $(seq 100); do
        for path in /sys/block/nvme*n*; do
            if [ -e "$path/device/subsysnqn" ] && [ "$(cat "$path/device/subsysnqn")" = "$1" ] &&
                [ "$(cat "$path/size")" -gt 0 ] && [ -b "/dev/${path##*/}" ]; then
                echo "/dev/${path##*/}"
                return
            fi
        done
        sleep 0.1
    done
    fail "no block device for $1"
}
mkdir -p /run/volume /run/restored
modprobe nvme-tcp
# shellcheck disable=SC2086
nvme connect $fabric --nqn="$NQN" $patience >/dev/null
disk=$(device "$NQN")

# A file system takes space, and gives it back when its files are gone and it is trimmed.
trims() {
    step "$1: written and trimmed"
    "mkfs.$1" $2 "$disk" >/run/mkfs.log 2>&1 || { cat /run/mkfs.log; fail "mkfs.$1"; }
    mount "$disk" /run/volume || fail "mount of $1"
    dd if=/dev/urandom of=/run/volume/file bs=1M count=96 conv=fsync status=none || fail "write"
    host-call written 96 || fail "kubectl does not show what $1 has written"
    rm /run/volume/file
    sync
    fstrim --verbose /run/volume || fail "fstrim on $1"
    host-call trimmed 64 || fail "kubectl does not show that $1 was trimmed"
    umount /run/volume || fail "umount of $1"
}
trims ext4 "-q -F -E lazy_itable_init=0,lazy_journal_init=0"
trims xfs "-q -f"

step "a snapshot under load"
mount "$disk" /run/volume || fail "mount"
head -c 3000000 /dev/urandom >/run/volume/kept
sum=$(sha256sum </run/volume/kept)
sync
fio --name=load --directory=/run/volume --size=24m --rw=randwrite --bsrange=4k-64k --ioengine=libaio --direct=1 --iodepth=8 \
    --fsync=32 --time_based --runtime=300 >/run/load.log 2>&1 &
load=$!
sleep 2
subsystems() { nvme discover $fabric | awk '/^subnqn:/ { print $2 }' | sort -u; }
subsystems >/run/before
host-call snapshot || fail "no snapshot, or it was not restored"
kill -0 $load || { cat /run/load.log; fail "fio has ended before the snapshot was taken"; }
kill -INT $load
wait $load || true
restored=$(subsystems | comm -13 /run/before -)
[ -n "$restored" ] || fail "discovery does not name the restored volume"

step "what was restored mounts clean"
# shellcheck disable=SC2086
nvme connect $fabric --nqn="$restored" $patience >/dev/null
copy=$(device "$restored")
[ "$copy" != "$disk" ] || fail "the restored volume is the first one"
# The file system was in use: its journal is replayed, and it has the UUID of the first one, which is mounted.
mount -o nouuid "$copy" /run/restored || fail "mount of the restored volume"
[ "$(sha256sum </run/restored/kept)" = "$sum" ] || fail "a file that was synced is not in the snapshot"
umount /run/restored
xfs_repair -n "$copy" >/run/repair.log 2>&1 || { cat /run/repair.log; fail "xfs_repair finds damage in what was restored"; }

step "without its snapshot"
host-call forget || fail "the snapshot cannot be deleted"
mount -o nouuid "$copy" /run/restored || fail "mount after the snapshot is gone"
[ "$(sha256sum </run/restored/kept)" = "$sum" ] || fail "the file is gone with the snapshot"
umount /run/restored /run/volume
nvme disconnect-all
if dmesg | grep -E 'nvme.*(digest error|unexpected|invalid|unsupported|bad |identifiers changed|malformed|protocol error)'; then
    fail "the kernel complains"
fi
step done
