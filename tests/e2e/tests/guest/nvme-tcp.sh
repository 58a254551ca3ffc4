# What Linux's own NVMe/TCP host does with a volume. Variables: ADDRESS, PORT, NQN, and SIZE, the volume's size in bytes;
# RESERVATIONS, where the target keeps them and the test answers for another host.
# GROWN, the size that the hook `grow` gives the volume, where it can grow.
# The host's hooks: `kill` ends the target with SIGKILL, `start` starts it again on the same data.
set -euo pipefail

step() { echo "== $* ($(cut -d' ' -f1 /proc/uptime) s)"; }
fail() { echo "FAILED: $*"; exit 1; }
fabric="--transport=tcp --traddr=$ADDRESS --trsvcid=$PORT"
# Time is slow here: generous limits, quick retries.
patience="--ctrl-loss-tmo=240 --reconnect-delay=1 --keep-alive-tmo=10"

# The block device of the subsystem, once it is there.
device() {
    local tries path
    for tries in $(seq 100); do
        for path in /sys/block/nvme*n*; do
            if [ -e "$path/device/subsysnqn" ] && [ "$(cat "$path/device/subsysnqn")" = "$NQN" ] &&
                [ "$(cat "$path/size")" -gt 0 ] && [ -b "/dev/${path##*/}" ]; then
                echo "/dev/${path##*/}"
                return
            fi
        done
        sleep 0.1
    done
    fail "no block device for $NQN"
}
connect() {
    # shellcheck disable=SC2086
    nvme connect $fabric --nqn="$NQN" $patience "$@" >/dev/null
    disk=$(device)
}
# What another host's command ends with: 131 is Reservation Conflict.
other() { local code=0; host-call other "$@" || code=$?; echo $code; }
# The controllers' states, one word each.
states() { cat /sys/class/nvme/nvme*/state 2>/dev/null | sort -u | tr '\n' ' '; }

modprobe nvme-tcp

step discover
# shellcheck disable=SC2086
nvme discover $fabric >/run/discovery || fail "nvme discover"
grep -q "subnqn: *$NQN\$" /run/discovery || { cat /run/discovery; fail "discovery does not name $NQN"; }

step connect
connect --nr-io-queues=2
[ "$(blockdev --getsize64 "$disk")" = "$SIZE" ] || fail "size is $(blockdev --getsize64 "$disk"), not $SIZE"

step identify
nvme id-ctrl "$disk" -o json >/run/controller
jq -e --arg nqn "$NQN" '.subnqn == $nqn and .cntrltype == 1 and (.sgls % 2) == 1 and .kas > 0' /run/controller >/dev/null ||
    { cat /run/controller; fail "identify controller"; }
nvme id-ns "$disk" -o json >/run/namespace
jq -e --argjson size "$SIZE" '.nsze * pow(2; .lbafs[.flbas % 16].ds) == $size' /run/namespace >/dev/null ||
    { cat /run/namespace; fail "identify namespace"; }
nvme ns-descs "$disk" | grep -q '^uuid' || fail "no UUID among the namespace's descriptors"
uuid=$(cat "/sys/block/${disk##*/}/uuid")
nvme list-ns "$disk" | grep -q '0x1' || fail "list of namespaces"

step "log pages and features"
nvme smart-log "$disk" >/dev/null || fail "SMART log"
nvme error-log "$disk" --log-entries=1 >/dev/null || fail "error log"
nvme fw-log "$disk" >/dev/null || fail "firmware log"
nvme effects-log "$disk" >/dev/null || fail "effects log"
nvme get-feature "$disk" --feature-id=7 >/dev/null || fail "feature: number of queues"
nvme get-feature "$disk" --feature-id=0xf >/dev/null || fail "feature: keep-alive timer"

step "file system"
mkfs.xfs -q -f "$disk" || fail "mkfs.xfs"
mkdir -p /run/volume
mount "$disk" /run/volume || fail "mount"
fio --name=files --directory=/run/volume --size=24m --numjobs=2 --rw=randwrite --bsrange=4k-64k --ioengine=libaio \
    --direct=1 --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=64 >/run/fio.log 2>&1 ||
    { cat /run/fio.log; fail "fio with verify on files"; }
head -c 3000000 /dev/urandom >/run/volume/random
sum=$(sha256sum </run/volume/random)
sync

# The host is told that the namespace has changed, and nobody connects again.
grown() {
    step "growth under load"
    local before
    before=$(cat /sys/class/nvme/nvme*/cntlid)
    fio --name=grows --filename=/run/volume/grows --size=16m --rw=randrw --bs=4k --ioengine=libaio --direct=1 --iodepth=8 \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --io_size=16m >/run/grows.log 2>&1 &
    local load=$!
    host-call grow || fail "the volume cannot be grown"
    for tries in $(seq 300); do
        [ "$(blockdev --getsize64 "$disk")" = "$GROWN" ] && break
        sleep 0.1
    done
    [ "$(blockdev --getsize64 "$disk")" = "$GROWN" ] || fail "size is still $(blockdev --getsize64 "$disk"), not $GROWN"
    wait $load || { cat /run/grows.log; fail "fio over a growing volume"; }
    [ "$(cat /sys/class/nvme/nvme*/cntlid)" = "$before" ] || fail "the host connected again"
    xfs_growfs /run/volume >/run/growfs.log 2>&1 || { cat /run/growfs.log; fail "xfs_growfs"; }
    local blocks
    blocks=$(stat --file-system --format='%b * %S' /run/volume)
    [ $((blocks)) -gt $((SIZE)) ] || fail "the file system has $((blocks)) bytes after the growth"
    SIZE=$GROWN
}
[ -z "${GROWN:-}" ] || grown

step "SIGKILL under load"
fio --name=load --filename=/run/volume/load --size=24m --rw=randrw --bs=4k --ioengine=libaio --direct=1 --iodepth=8 \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --io_size=16m >/run/load.log 2>&1 &
load=$!
sleep 2
host-call kill || fail "the target cannot be killed"
for tries in $(seq 300); do
    [[ $(states) == *connecting* ]] && break
    sleep 0.1
done
[[ $(states) == *connecting* ]] || fail "the host did not notice that the target is gone: $(states)"
host-call start || fail "the target cannot be started again"
wait $load || { cat /run/load.log; fail "fio over a killed target"; }
for tries in $(seq 600); do
    [ "$(states)" = "live " ] && break
    sleep 0.1
done
[ "$(states)" = "live " ] || fail "not live again: $(states)"

step "data after SIGKILL"
umount /run/volume || fail "umount"
echo 3 >/proc/sys/vm/drop_caches
mount "$disk" /run/volume || fail "mount after reconnection"
[ "$(sha256sum </run/volume/random)" = "$sum" ] || fail "the file has changed"
fio --name=files --directory=/run/volume --size=24m --numjobs=2 --rw=randread --bsrange=4k-64k --ioengine=libaio \
    --direct=1 --iodepth=16 --verify=crc32c --verify_only >/run/fio.log 2>&1 ||
    { cat /run/fio.log; fail "fio's data after reconnection"; }
umount /run/volume
xfs_repair -n "$disk" >/run/repair.log 2>&1 || { cat /run/repair.log; fail "xfs_repair finds damage"; }
[ "$(cat "/sys/block/${disk##*/}/uuid")" = "$uuid" ] || fail "the UUID has changed"

step "discard and write zeroes"
blkdiscard --force "$disk" || fail "blkdiscard"
dd if=/dev/urandom of="$disk" bs=1M count=4 oflag=direct status=none || fail "write"
blkdiscard --force --zeroout --offset 1048576 --length 1048576 "$disk" || fail "write zeroes"
cmp -n 1048576 <(dd if="$disk" bs=1M skip=1 count=1 iflag=direct status=none) /dev/zero || fail "zeroes do not read as zeroes"
blkdiscard --force --offset 0 --length 1048576 "$disk" || fail "blkdiscard of a range"
nvme flush "$disk" || fail "flush"

# The target keeps reservations, and the test has another host: `host-call other`.
reservations() {
    step reservations
    status() { nvme resv-report "$disk" --eds -o json | jq -r "$1"; }
    nvme resv-register "$disk" --namespace-id=1 --nrkey=0xa1 --rrega=0 --cptpl=3 || fail "register"
    nvme resv-acquire "$disk" --namespace-id=1 --crkey=0xa1 --rtype=1 --racqa=0 || fail "acquire"
    [ "$(status '.rtype, .ptpls, .regctl' | tr '\n' ' ')" = "1 1 1 " ] || { nvme resv-report "$disk" --eds; fail "report"; }
    nvme get-feature "$disk" --namespace-id=1 --feature-id=0x83 | grep -qE 'value:0x0*1$' || fail "feature 83h"
    host-call kill || fail "the target cannot be killed"
    host-call start || fail "the target cannot be started again"
    for tries in $(seq 600); do
        [ "$(states)" = "live " ] && break
        sleep 0.1
    done
    [ "$(status '.rtype, .ptpls, .regctl' | tr '\n' ' ')" = "1 1 1 " ] || { nvme resv-report "$disk" --eds; fail "the reservation is lost after SIGKILL"; }
    dd if=/dev/urandom of="$disk" bs=4k count=1 oflag=direct status=none || fail "the holder cannot write"
    [ "$(other write)" = 131 ] || fail "another host may write"
    [ "$(other read)" = 0 ] || fail "another host may not read"
    [ "$(other preempt a1)" = 0 ] || fail "another host cannot preempt"
    if dd if=/dev/zero of="$disk" bs=4k count=1 oflag=direct status=none 2>/run/dd.log; then fail "a preempted host may write"; fi
    nvme resv-notif-log "$disk" >/run/notification || fail "notification page"
    grep -q 'Page Type.*: 1 ' /run/notification || { cat /run/notification; fail "no notification"; }
    [ "$(status '.rtype, .regctl' | tr '\n' ' ')" = "1 1 " ] || { nvme resv-report "$disk" --eds; fail "preempted"; }
    [ "$(other clear)" = 0 ] || fail "another host cannot clear"
    dd if=/dev/zero of="$disk" bs=4k count=1 oflag=direct status=none || fail "nobody holds, and a host may not write"
    nvme resv-register "$disk" --namespace-id=1 --nrkey=0xa1 --rrega=0 || fail "register again"
    nvme resv-acquire "$disk" --namespace-id=1 --crkey=0xa1 --rtype=5 --racqa=0 || fail "acquire for all registrants"
    nvme resv-release "$disk" --namespace-id=1 --crkey=0xa1 --rtype=5 --rrela=0 || fail "release"
    nvme resv-register "$disk" --namespace-id=1 --crkey=0xa1 --rrega=1 || fail "unregister"
    [ "$(status '.rtype, .regctl' | tr '\n' ' ')" = "0 0 " ] || { nvme resv-report "$disk" --eds; fail "released"; }
}
[ -z "${RESERVATIONS:-}" ] || reservations

step disconnect
nvme disconnect --nqn="$NQN" >/dev/null || fail "disconnect"
for tries in $(seq 50); do
    [ -z "$(ls /sys/class/nvme 2>/dev/null)" ] && break
    sleep 0.1
done
[ -z "$(ls /sys/class/nvme 2>/dev/null)" ] || fail "controllers are left after disconnect"

step digests
connect --nr-io-queues=1 --hdr-digest --data-digest
fio --name=digests --filename="$disk" --size=8m --rw=randwrite --bsrange=4k-128k --ioengine=libaio --direct=1 --iodepth=8 \
    --verify=crc32c --verify_fatal=1 --do_verify=1 >/run/fio.log 2>&1 || { cat /run/fio.log; fail "fio with digests"; }
nvme disconnect --nqn="$NQN" >/dev/null

step "kernel messages"
# What the kernel says when a peer breaks the protocol; a reset after SIGKILL says other things.
if dmesg | grep -E 'nvme.*(digest error|unexpected|invalid|unsupported|bad |identifiers changed|malformed|protocol error)'; then
    fail "the kernel complains"
fi
step done
