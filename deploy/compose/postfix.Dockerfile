# Postfix in front of the gateway, set up by the same installer as on any host.
FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postfix ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && cp /usr/share/postfix/main.cf.debian /etc/postfix/main.cf \
 && postconf -e "maillog_file = /dev/stdout" "mydestination ="
COPY postfix /opt/gateway-postfix
EXPOSE 25
CMD ["sh", "-c", "/opt/gateway-postfix/install --domain \"$DOMAIN\" --recipients /var/lib/gateway/postfix/recipients && exec postfix start-fg"]
