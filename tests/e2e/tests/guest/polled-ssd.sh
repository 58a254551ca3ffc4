# basaltd on a kernel's NVMe SSD that is asked for its completions, with the kernel's own host over loopback.
set -euo pipefail

step() { echo "== $* ($(cut -d' ' -f1 /proc/uptime) s)"; }
fail() { echo "FAILED: $*"; cat /run/basaltd.log 2>/dev/null; exit 1; }
NQN=nqn.2026-01.storage.basalt:polled-ssd

step "an SSD with a queue to ask"
modprobe nvme poll_queues=1
for tries in $(seq 100); do
    ssd=$(grep -lsx "basalt-ssd *" /sys/class/nvme/nvme*/serial | head -1 || true)
    [ -n "$ssd" ] && disk=$(ls -d "${ssd%/serial}"/nvme*n1 2>/dev/null || true) && [ -n "$disk" ] && break
    sleep 0.1
done
disk=${disk##*/}
[ "$(cat "/sys/block/$disk/queue/io_poll")" = 1 ] || fail "the kernel does not poll $disk"

step "basaltd on /dev/$disk"
chmod +x /run/job/basaltd
/run/job/basaltd serve --cores 1 --polling busy --listen 127.0.0.1:4420 --nqn $NQN --device "file,path=/dev/$disk" \
    >/run/basaltd.log 2>&1 &
daemon=$!
for tries in $(seq 300); do
    grep -qx ready /run/basaltd.log && break
    kill -0 $daemon 2>/dev/null || fail "basaltd ended"
    sleep 0.1
done
grep -q "disk opened.*direct=true polled=true" /run/basaltd.log || fail "the disk is not polled"

step "Linux's host"
modprobe nvme-tcp
nvme connect --transport=tcp --traddr=127.0.0.1 --trsvcid=4420 --nqn=$NQN --nr-io-queues=1 >/dev/null
volume=
for tries in $(seq 100); do
    for path in /sys/block/nvme*n*; do
        [ -e "$path/device/subsysnqn" ] && [ "$(cat "$path/device/subsysnqn")" = $NQN ] && [ -b "/dev/${path##*/}" ] &&
            volume=/dev/${path##*/}
    done
    [ -n "$volume" ] && break
    sleep 0.1
done
[ -n "$volume" ] || fail "no block device for $NQN"

step "written, flushed, verified"
# The interrupts of the SSD's I/O queues: nothing but flushes may cause any.
interrupts() { awk '/nvme[0-9]+q[1-9]/ { for (i = 2; i <= 3; i++) sum += $i } END { print sum + 0 }' /proc/interrupts; }
before=$(interrupts)
[ "$before" -gt 0 ] || { cat /proc/interrupts; fail "the kernel's own look at the partitions has caused no interrupt"; }
fio --name=verify --filename="$volume" --rw=randwrite --bs=4k --size=8m --iodepth=8 --ioengine=libaio --direct=1 \
    --verify=crc32c --output=/run/fio.log >/dev/null || { cat /run/fio.log; fail fio; }
caused=$(($(interrupts) - before))
[ "$caused" -lt 400 ] || fail "$caused interrupts for 4096 reads and writes"
echo "$caused interrupts for 4096 reads and writes"
blockdev --flushbufs "$volume"
blkdiscard --offset 0 --length 1048576 "$volume" || fail blkdiscard
nvme disconnect --nqn=$NQN >/dev/null

step "the daemon stops"
kill -TERM $daemon
wait $daemon || fail "basaltd ended with $?"
cat /run/basaltd.log
