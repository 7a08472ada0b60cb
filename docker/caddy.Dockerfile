ARG CADDY_IMAGE=caddy:2.11.4-alpine
# hadolint ignore=DL3006
FROM ${CADDY_IMAGE}
# A copy has no file capability. With it the kernel refuses to start the program where the capability may not be had; and
# none is needed, because the server listens above 1024 and the host's 80 and 443 are published to there.
RUN cp /usr/bin/caddy /usr/bin/caddy-plain && mv /usr/bin/caddy-plain /usr/bin/caddy \
    && mkdir -p /data/caddy && chown -R 10001:10001 /data
USER 10001:10001
EXPOSE 8080 8443 8443/udp
