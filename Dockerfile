# The gateway in one small image, as nobody in particular: every service is this image with another `gateway run NAME`.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
ENV UV_PROJECT_ENVIRONMENT=/opt/gateway UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_PREFERENCE=only-system
RUN pip install --no-cache-dir "uv>=0.13,<0.14"
COPY pyproject.toml uv.lock README.md ./
RUN uv sync --frozen --no-dev --no-install-project
COPY templates templates
COPY gateway gateway
RUN uv sync --frozen --no-dev --no-editable

FROM python:3.11-slim-bookworm
RUN groupadd --system --gid 10001 gateway \
 && useradd --system --uid 10001 --gid gateway --home-dir /var/lib/gateway --no-create-home gateway \
 && install -d -o gateway -g gateway -m 0755 /var/lib/gateway /run/gateway
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH PYTHONUNBUFFERED=1 GATEWAY_DATA_DIR=/var/lib/gateway GATEWAY_LOG_FORMAT=json
WORKDIR /var/lib/gateway
USER 10001
VOLUME ["/var/lib/gateway"]
EXPOSE 2525 2424 8025
ENTRYPOINT ["gateway"]
CMD ["run"]
