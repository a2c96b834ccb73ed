#!/bin/sh
# What the tests need and PyPI cannot give, from Debian's packages (root).  No service is started: policy-rc.d says 101
# while they are installed, and the tests start their own, on free ports and in private folders.
set -eu
packages="chromium docker-compose postfix rabbitmq-server redis-server postgresql swaks libnet-ssleay-perl msmtp curl procps systemd"
missing=""
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing="$missing $package"
done
command -v npm >/dev/null || missing="$missing nodejs npm"
clients=$(cd "$(dirname "$0")/../clients" && pwd)
[ -z "$missing" ] && [ -d "$clients/node_modules" ] && exit 0
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
[ -z "$missing" ] || apt-get install -y -qq --no-install-recommends $missing >/dev/null
npm ci --silent --no-audit --no-fund --ignore-scripts --prefix "$clients"
