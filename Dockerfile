# The image of the service. From the repository's root, after `docker build -t anker .`:
#
#   docker run -p 8000:8000 --env-file .env -v /var/run/docker.sock:/var/run/docker.sock -v anker-data:/data anker
#
# The service needs the engine's socket to run each session's sandbox as another container. Access to that socket is
# equivalent to root on the machine; see docs/operations.md.
FROM debian:bookworm-slim AS packages

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        binutils ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

COPY constraints.txt requirements.txt /build/
COPY sandbox/requirements.txt /build/sandbox/
# Remove pip, because nothing is installed later, and the debug symbols of the Node that drives the browsers.
RUN python3 -m venv /opt/anker \
    && /opt/anker/bin/pip install --no-cache-dir --disable-pip-version-check --no-compile -r /build/requirements.txt \
    && /opt/anker/bin/pip uninstall --yes --quiet pip setuptools \
    && strip /opt/anker/lib/python3*/site-packages/playwright/driver/node \
    && find /opt/anker -name tests -type d -prune -exec rm -r {} + \
    && python3 -m compileall -q -j 0 /opt/anker/lib


FROM debian:bookworm-slim

# That Node needs libatomic1. tini forwards signals from the start on, and reaps orphaned processes.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates libatomic1 python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
    && useradd --uid 1000 --user-group --create-home --shell /usr/sbin/nologin anker \
    # Other users (`--user 1234`) can write too: they are in the group root by default.
    && install --directory --owner anker --group root --mode 770 /data

COPY --from=packages /opt/anker /opt/anker
# Tells the service that only published ports are reachable, so that it may start without a login.
RUN touch /opt/anker/anker-image
COPY scripts/entrypoint.sh /opt/anker/bin/entrypoint
# The sandbox program is included because, without an engine, the demo's sandboxes are processes in this container.
COPY sandbox /opt/anker/lib/python3.11/site-packages/sandbox
COPY app /opt/anker/lib/python3.11/site-packages/app
RUN python3 -m compileall -q /opt/anker/lib/python3.11/site-packages/sandbox /opt/anker/lib/python3.11/site-packages/app

ENV LANG=C.UTF-8 \
    PATH=/opt/anker/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/home/anker \
    HOST=0.0.0.0 \
    PORT=8000 \
    DATA_DIR=/data

# With this working directory, the `./data` of an `--env-file .env` means /data.
WORKDIR /
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-I", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]

ENTRYPOINT ["/opt/anker/bin/entrypoint"]
CMD ["python", "-I", "-m", "app"]
