#!/bin/bash
# build-image.sh OUT: makes what a guest boots from.
#
# OUT/vmlinuz    a Debian kernel of the series $series (6.12 unless the environment names another)
# OUT/initrd     busybox and the modules that reach the root disk
# OUT/root.ext4  a read-only Debian with nvme-cli, fio, xfsprogs and the guest's agent
#
# Needs root, mmdebstrap, e2fsprogs, cpio, zstd and xz-utils. Nothing outside of OUT is changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
series=${series:-6.12}

say() { printf 'guest image: %s (%ds)\n' "$*" "$SECONDS"; }

# The archives that the host itself uses, with updates and backports.
archives() {
    local uris main security
    uris=$({ cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true; } |
        awk '/^URIs:/ { print $2 } /^deb / { for (i = 2; i <= NF; i++) if ($i ~ /^https?:/) print $i }' |
        grep -E '/debian(-security)?/?$' | sort -u)
    main=$(grep -v security <<<"$uris" | head -1)
    security=$(grep security <<<"$uris" | head -1 || true)
    main=${main:-http://deb.debian.org/debian}
    security=${security:-http://deb.debian.org/debian-security}
    printf 'deb %s main\n' "$main bookworm" "$main bookworm-updates" "$main bookworm-backports" \
        "$security bookworm-security"
}

# mmdebstrap runs this outside of the new root with its apt configuration: fetches the newest kernel of the series.
fetch_kernel() {
    local package
    package=$(apt-cache search --names-only "^linux-image-${series//./\\.}\\.[0-9]+(-[0-9]+|\\+deb[0-9u]+)-amd64\$" |
        awk '{ print $1 }' | sort -V | tail -1)
    [ -n "$package" ] || { echo "no kernel of series $series in the archives" >&2; return 1; }
    (cd "$work/kernel" && apt-get -qq -o APT::Sandbox::User=root download "$package")
}

make_root() {
    archives >"$work/sources.list"
    local packages=bash,busybox-static,e2fsprogs,fio,iproute2,jq,kmod,nvme-cli,procps,util-linux,xfsprogs
    # A hook is run by sh, which knows no functions of ours: this script calls itself.
    export series work
    export builder=$here/build-image.sh
    mmdebstrap --quiet --variant=minbase --mode=root --include="$packages" \
        --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='APT_CONFIG=$MMDEBSTRAP_APT_CONFIG bash "$builder" --fetch-kernel' \
        bookworm "$root" "$work/sources.list" >"$work/mmdebstrap.log" 2>&1 ||
        { tail -20 "$work/mmdebstrap.log" >&2; exit 1; }
}

# Keeps the modules that are named, with all that they need, uncompressed (an emulated CPU is slow at xz). Runs the
# guest's own kmod: the host may have none.
boot_modules="virtio_pci virtio_blk virtio_net virtio_console ext4 crc32c_generic crc32c_intel overlay"
more_modules="nvme nvme-tcp nvme-fabrics xfs libcrc32c loop dm-mod configfs"
closure() {
    local version=$1 name
    shift
    for name in "$@"; do
        chroot "$root" modprobe -S "$version" --show-depends "$name" 2>/dev/null | awk '$1 == "insmod" { print $2 }'
    done | awk '!seen[$0]++'
}

install_modules() {
    local version=$1 file
    mkdir -p "$root/lib/modules"
    mv "$work/kernel/tree/lib/modules/$version" "$root/lib/modules/$version"
    chroot "$root" depmod "$version"
    closure "$version" $boot_modules $more_modules >"$work/modules"
    find "$root/lib/modules/$version" -name '*.ko*' | while read -r file; do
        grep -qxF "${file#"$root"}" "$work/modules" || rm "$file"
    done
    find "$root/lib/modules/$version" -name '*.ko.xz' -exec xz -d {} +
    chroot "$root" depmod "$version"
}

make_initrd() {
    local version=$1 tree=$work/initrd file
    rm -rf "$tree"
    mkdir -p "$tree"/{bin,dev,proc,sys,lower,upper,new,modules}
    cp "$root/bin/busybox" "$tree/bin/busybox"
    : >"$tree/modules/order"
    closure "$version" $boot_modules | while read -r file; do
        cp "$root$file" "$tree/modules/"
        echo "${file##*/}" >>"$tree/modules/order"
    done
    install -m 755 "$here/init" "$tree/init"
    (cd "$tree" && find . | cpio -o -H newc --quiet | zstd -q -3 -f -o "$out/initrd")
}

if [ "$1" = --fetch-kernel ]; then
    fetch_kernel
    exit
fi
out=$1
work=$out/build
root=$work/root
say "Debian root"
rm -rf "$root" "$work/kernel"
mkdir -p "$work/kernel/tree"
make_root
dpkg -x "$work"/kernel/*.deb "$work/kernel/tree"
version=$(basename "$work"/kernel/tree/lib/modules/*)
say "kernel $version"
cp "$work/kernel/tree/boot/vmlinuz-$version" "$out/vmlinuz"
install_modules "$version"
make_initrd "$version"

install -m 755 "$here/agent" "$root/basalt-agent"
install -m 755 "$here/host-call" "$root/usr/bin/host-call"
mkdir -p "$root/etc/nvme"
echo nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001 >"$root/etc/nvme/hostnqn"
echo 00000000-0000-4000-8000-000000000001 >"$root/etc/nvme/hostid"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale,zoneinfo}
say "root image"
rm -f "$out/root.ext4"
truncate -s 1G "$out/root.ext4"
mke2fs -q -t ext4 -O '^has_journal,^metadata_csum' -m 0 -d "$root" "$out/root.ext4"
rm -rf "$work"
say "done"
