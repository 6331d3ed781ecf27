# Fetches the model: git, and the DVC that requirements/main.in pins, with the remotes of three clouds.
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir "dvc[azure,gs,s3]==3.67.1"
# A volume of compose takes the owner of the folder that it covers.
RUN install --directory --owner=1000 --group=1000 /var/lib/temper/models
USER 1000:1000
