# The repository with the versions of requirements.lock, installed as `make setup` does it without uv.
#
#   docker build -t xai-lib .
#   docker run --rm -p 127.0.0.1:8888:8888 xai-lib                    JupyterLab: open the address with the token in its log
#   docker run --rm xai-lib xai-lib run 03 --profile smoke             any other command
#
# JupyterLab listens on the container's own addresses, or its port could not be published. Who reaches it is decided by -p:
# with 127.0.0.1 in front of it, as above, this machine only.
FROM python:3.12-slim

RUN useradd --create-home reader && install -d -o reader -g reader /home/reader/xai-lib
USER reader
WORKDIR /home/reader/xai-lib

COPY --chown=reader:reader requirements.lock ./
RUN python -m venv .venv \
 && .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --require-hashes -r requirements.lock

COPY --chown=reader:reader . .
RUN .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .

ENV PATH="/home/reader/xai-lib/.venv/bin:$PATH"
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--notebook-dir=notebooks"]
