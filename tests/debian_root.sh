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

as_inside() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 chroot "$root" sh -c "cd /srv/gateway && exec $1"; }

first_run() { # `make run` until it serves; prints the seconds that took
    log="$root/run.log"
    began=$(date +%s%N)
    setsid env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        chroot "$root" sh -c "cd /srv/gateway && exec make run" >"$log" 2>&1 &
    group=$!
    until grep -q "Serving until" "$log"; do
        kill -0 "$group" 2>/dev/null || { cat "$log"; exit 1; }
        sleep 0.1
    done
    echo "$1: $(( ($(date +%s%N) - began) / 1000000 )) ms to the served demo"
    kill -INT "-$group"
    wait "$group" || true
}

echo "in there: $(as_inside 'python3 --version'), no venv module: $(as_inside 'python3 -m ensurepip --version' 2>&1 | tail -1)"
first_run "first make run, with the downloads"
sed -n '/^what/,/^Serving/p' "$root/run.log"
rm -rf "$root/srv/gateway/var"
first_run "make run in a new data_dir"
first_run "second make run"
rm -rf "$root/srv/gateway/.venv" "$root/srv/gateway/var"
first_run "make run from nothing but the download cache"
as_inside "make test"
