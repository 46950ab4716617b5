# docker build -t duet-server .   for the CPU.
# DEVICE=cuda as a build argument puts vLLM's build for NVIDIA GPUs in, on which the engine is not proven yet.
FROM python:3.12-slim-bookworm

ARG DEVICE=cpu

# libnuma: vLLM's operators for the CPU link to it. g++: models and kernels are compiled when the engine starts.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 duet
WORKDIR /opt/duet-server

# Only what decides the dependencies comes before they are installed, so that a change to the code leaves them alone:
# the installation is editable, and an empty package is enough to make it.
COPY pyproject.toml README.md LICENSE ./
COPY scripts scripts
RUN mkdir -p server/duet_server duet_kernels training/duet_training \
    && touch server/duet_server/__init__.py duet_kernels/__init__.py training/duet_training/__init__.py
RUN --mount=type=cache,target=/root/.cache/pip \
    python scripts/install.py --venv /opt/venv --device "$DEVICE" --extras ""

COPY duet_kernels duet_kernels
COPY training training
COPY server server

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    VLLM_NO_USAGE_STATS=1
USER duet
EXPOSE 8000

# Loading a large model takes minutes.
HEALTHCHECK --interval=15s --timeout=5s --start-period=15m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]

ENTRYPOINT ["duet-server", "serve"]
