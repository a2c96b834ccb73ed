#!/bin/sh
# An empty Debian bookworm root with python3, pip, make and CA certificates only: `make run` to the served demo, then
# `make test`.  Needs root and debootstrap; leaves nothing behind but the cached root in $CACHE.
# Prints how long `make run` took with the downloads and, in a second tree with warm download caches, without them.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
cache=${CACHE:-/var/tmp/gateway-debian-root}
mirror=${MIRROR:-http://deb.debian.org/debian}
[ -d "$cache/usr" ] || debootstrap --variant=minbase --include=python3,python3-pip,make,ca-certificates bookworm "$cache" "$mirror" >/dev/null

root=$(mktemp -d /var/tmp/gateway-root.XXXXXX)
clean() { umount "$root/proc" "$root/dev" 2>/dev/null || true; rm -rf --one-file-system "$root"; }
trap clean EXIT INT TERM
cp -a "$cache/." "$root"
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mkdir -p "$root/srv/gateway"
git -C "$here" archive HEAD | tar -x -C "$root/srv/gateway"

inside() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    chroot "$root" sh -c "cd /srv/gateway && $1"; }

now() { date +%s.%N; }
first_run() { # until the demo is over and the gateway serves
    inside 'rm -rf var; (timeout -s INT 120 make run >run.log 2>&1 &) ; while ! grep -q "Serving until" run.log 2>/dev/null; do
        sleep 0.1; done; cat run.log; pkill -INT -f "gateway run" 2>/dev/null || kill -INT $(grep -l "gateway" /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3) 2>/dev/null || true'
}

inside 'ls /usr/lib/python3/dist-packages | grep -i -E "venv|magic" && exit 1; python3 --version; which gcc postfix && exit 1; true'
began=$(now); first_run; ended=$(now)
echo "make run, with downloads, to the served demo: $(echo "$ended $began" | awk '{printf "%.1f s", $1-$2}')"
inside 'rm -rf .venv var'
began=$(now); first_run >/dev/null; ended=$(now)
echo "make run, downloads cached, to the served demo: $(echo "$ended $began" | awk '{printf "%.1f s", $1-$2}')"
inside 'make test'
