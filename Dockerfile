# The package with its page and server. Runs on a CPU, and on NVIDIA GPUs with `docker run --gpus all`.
#
#     docker build -t ultraflash .
#     docker run --rm -p 7860:7860 ultraflash
#     docker run --rm --volume "$PWD:/work" ultraflash upscale clip.mp4 clip_2x.mp4
#
# PyTorch's default builds bring CUDA along; for a small image, TORCH_INDEX names an index of CPU builds.
FROM python:3.11-slim

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /opt/ultraflash
COPY constraints.txt ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --constraint constraints.txt '.[demo]' \
    && useradd --create-home --uid 1000 visitor

USER 1000
WORKDIR /work
EXPOSE 7860
ENTRYPOINT ["ultraflash"]
CMD ["demo", "--host", "0.0.0.0", "--port", "7860"]
