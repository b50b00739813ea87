# tuplet serve; docs/serve.md, "In a container", has the commands that build and run it.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/tuplet \
    && /opt/tuplet/bin/pip install --no-cache-dir --constraint constraints.txt '.[search,heic]'

FROM python:3.11-slim-bookworm
COPY --from=build /opt/tuplet /opt/tuplet
RUN useradd --create-home --uid 1000 tuplet
USER 1000
WORKDIR /home/tuplet
ENV PATH=/opt/tuplet/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=30s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["tuplet"]
CMD ["serve", "/index", "--model", "/model", "--host", "0.0.0.0", "--port", "8000", "--token-file", "/run/token"]
