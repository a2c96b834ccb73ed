#!/bin/sh
# Follows docs/postfix.md word by word in an empty Debian bookworm root: every ```sh block, in order, then looks whether the
# mail is there.  Needs root, debootstrap and unshare; the root of tests/debian_root.sh is made once and kept in $CACHE.
# From section 2 on in a network of its own, so that port 25 is free; its processes end with their namespace.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
cache=${CACHE:-/var/tmp/gateway-debian-root}
mirror=${MIRROR:-http://deb.debian.org/debian}
[ -d "$cache/usr" ] || debootstrap --variant=minbase --include=python3,python3-pip,make,ca-certificates bookworm "$cache" "$mirror" >/dev/null

root=$(mktemp -d /var/tmp/gateway-page.XXXXXX)
clean() {
  for place in proc dev; do umount "$root/$place" 2>/dev/null || umount -l "$root/$place" 2>/dev/null || true; done
  rm -rf --one-file-system "$root"
}
trap clean EXIT INT TERM
cp -a "$cache/." "$root"
chmod 755 "$root"
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
mount --bind /dev "$root/dev"
mkdir -p "$root/opt/gateway"
git -C "$here" archive HEAD | tar -x -C "$root/opt/gateway"

blocks() { # the sh blocks of sections FROM to TO
  awk -v from="$1" -v to="$2" '/^## /{n=substr($2,1,1)+0} /^```sh/{on=1;next} /^```/{on=0} on&&n>=from&&n<=to' "$here/docs/postfix.md"
}
inside() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 chroot "$root" sh -eux; }

mount -t proc proc "$root/proc"
blocks 1 1 | inside
umount "$root/proc"
{
  blocks 2 4
  echo 'until grep -q gateway-serving /var/log/gateway.log; do sleep 0.2; done'
  blocks 5 5
  echo 'for i in $(seq 100); do gateway mails | grep -q delivered && break; sleep 0.5; done'
  echo 'gateway mails; postqueue -p'
  echo 'gateway mails --json | grep "\"disposition\": *\"delivered\"" && postqueue -p | grep "queue is empty"'
  echo '/opt/gateway/postfix/install --undo'
} >"$root/later.sh"
unshare --net --pid --fork --mount --kill-child sh -eu -c '
  ip link set lo up
  mount -t proc proc "$0/proc"
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 chroot "$0" sh -eux /later.sh' "$root"
echo "the page holds"
