# pneumoscope with its models, for segmenting without a network and without root:
#   docker build -t pneumoscope .
#   docker run --rm --network none -v "$PWD":/data pneumoscope segment -i /data/scans -o /data/results
FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/pneumoscope
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
# The CPU build of torch; for NVIDIA cards build with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /opt/pneumoscope/bin/pip install --extra-index-url "$TORCH_INDEX" ".[cluster]"

FROM python:3.12-slim-bookworm
# What VTK and OpenMP load at run time; Debian's slim image lacks them.
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libgomp1 libxrender1 libxext6 \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home --uid 1000 pneumoscope
COPY --from=build /opt/pneumoscope /opt/pneumoscope
ENV PATH=/opt/pneumoscope/bin:$PATH PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp/matplotlib
USER pneumoscope
WORKDIR /data
RUN pneumoscope model verify
ENTRYPOINT ["pneumoscope"]
CMD ["--help"]
