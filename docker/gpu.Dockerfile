# tinychat on NVIDIA GPUs: docker build --file docker/gpu.Dockerfile --tag tinychat:gpu .    (docs/docker.md: untried)
ARG CUDA=13.0.1
FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# Ubuntu's own python takes no packages.
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# PyPI's torch for Linux is the one for CUDA, with the libraries that it needs.
RUN python -m pip install 'torch>=2.11,<2.14'

WORKDIR /opt/tinychat
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY conf conf
COPY tinychat tinychat
RUN python -m pip install '.[gpt2,serve,qlora]'

COPY --chmod=755 docker/entrypoint.sh /usr/local/bin/tinychat-entrypoint

# Ubuntu's image has a user of its own with the id 1000.
RUN userdel --remove ubuntu && useradd --create-home --uid 1000 tinychat && install --directory --owner tinychat /data
USER 1000
WORKDIR /data
VOLUME /data
EXPOSE 8000
ENTRYPOINT ["tini", "--", "tinychat-entrypoint"]
CMD ["run"]
