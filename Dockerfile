# tinychat on CPUs: docker build --tag tinychat .    (docs/docker.md)
FROM python:3.11-slim-bookworm

# tini passes signals on, so that `docker stop` lets a training save.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# First what is large and changes seldom: torch without CUDA's libraries, which are gigabytes. The bounds are setup.cfg's.
RUN python -m pip install 'torch>=2.11,<2.14' --index-url https://download.pytorch.org/whl/cpu

WORKDIR /opt/tinychat
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY conf conf
COPY tinychat tinychat
RUN python -m pip install '.[gpt2,serve]'

COPY --chmod=755 docker/entrypoint.sh /usr/local/bin/tinychat-entrypoint

# Nothing here needs root. What runs write belongs to this user, as does the folder that is mounted.
RUN useradd --create-home --uid 1000 tinychat && install --directory --owner tinychat /data
USER 1000
WORKDIR /data
VOLUME /data
EXPOSE 8000
ENTRYPOINT ["tini", "--", "tinychat-entrypoint"]
CMD ["run"]
