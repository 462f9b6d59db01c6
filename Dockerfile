# docker build -t tryon-lora .
# docker run --rm tryon-lora --quick-test --embedded                              # any machine: the small model
# mkdir -p outputs; docker run --rm --gpus all --shm-size=1g --stop-timeout 120 -e HF_TOKEN \
#     --user "$(id -u):$(id -g)" -v hf:/cache -v "$PWD/outputs:/app/outputs" tryon-lora --h100               # the full run
#
# --shm-size: workers hand pictures over in /dev/shm, of which Docker gives 64 MiB. --stop-timeout: a stopped run saves
# first. -e HF_TOKEN hands the token on when the container starts; none is ever in a layer.

# The wheel of PyTorch 2.13 on PyPI is built for CUDA 13.0 and brings CUDA's libraries with it (cuBLAS, cuDNN, NCCL), so
# the small base image does: the CUDA runtime alone, without a second set of libraries. It also says that a driver for
# CUDA 13.0 (R580) is needed, which Docker then checks before anything starts.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# gcc and Python.h: Triton builds a launcher in C for --compile_blocks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# In its own layer, which a change of the code leaves alone. bitsandbytes is for --low-vram.
WORKDIR /app
COPY requirements.txt ./
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir -r requirements.txt bitsandbytes==0.50.2

COPY . ./

# Not root. Both folders may be written to by any user, so that --user "$(id -u):$(id -g)" makes outputs the caller's.
RUN useradd --uid 10001 --home-dir /cache --no-create-home trainer \
    && mkdir -p /cache outputs \
    && chmod 1777 /cache outputs
USER 10001
# Models, data and compiled kernels are kept on the volume.
ENV HOME=/cache HF_HOME=/cache/huggingface PYTHONUNBUFFERED=1
VOLUME ["/cache"]

ENTRYPOINT ["bash", "deepfashion_training/train_deepfashion_lora.sh"]
CMD ["--help"]
