# Not run yet: written where no container engine was at hand. tests/service/test_docker.py checks it as configuration only.
#
# CPU:  docker build --build-arg TORCH="torch==2.13.0 --index-url URL-OF-PYTORCH'S-CPU-WHEELS" -t introspect .
# GPU:  docker build -t introspect .      and run it with --gpus all ... serve --device cuda
FROM python:3.11-slim

ARG TORCH="torch==2.13.0"
WORKDIR /app
# torch by itself and first: its options (an index, say) are meant for nothing else, and its layer outlives our changes.
RUN pip install --no-cache-dir ${TORCH}
COPY pyproject.toml LICENSE README.md ./
COPY introspect introspect
COPY kernels kernels
COPY probes probes
COPY service service
RUN pip install --no-cache-dir .

RUN useradd --uid 10001 --create-home introspect
USER introspect
# Attention for CPUs is compiled now rather than at each start; on another kind of processor it is compiled again.
RUN python -c "import torch, introspect_kernels; introspect_kernels.compile_ahead(torch.float32)"
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
# Docker sends SIGTERM, and the service drains (INTROSPECT_DRAIN_SECONDS); give `docker stop` a longer limit than that.
ENTRYPOINT ["introspect"]
CMD ["serve", "--host", "0.0.0.0", "--redis", "off"]
