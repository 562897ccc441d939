# onnxmerge from its source distribution: docs/pipelines.md says how to build and run it.
FROM python:3.12-slim AS build
COPY . /source
RUN python -m venv /build && /build/bin/pip install --quiet build && /build/bin/python -m build --sdist --outdir /dist /source

FROM python:3.12-slim
# --build-arg EXTRAS=[cuda] brings the libraries of CUDA; the driver is the host's (docker run --gpus all)
ARG EXTRAS=
COPY --from=build /dist /dist
RUN pip install --no-cache-dir "$(echo /dist/*.tar.gz)$EXTRAS" && rm -r /dist
WORKDIR /work
ENTRYPOINT ["onnxmerge"]
