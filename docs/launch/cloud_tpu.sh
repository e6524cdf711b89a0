#!/usr/bin/env bash
# Train on a Cloud TPU slice with several hosts: docs/launch/cloud_tpu.sh NAME ZONE
# Create the slice first: gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=v5litepod-16 …
# All hosts must share a file system at /mnt/shared with this repository, the datasets and the runs.
set -euo pipefail

name=$1
zone=$2
# Every host runs the same command, and JAX finds the others. There are four hosts and four streams of rows.
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command='
  cd /mnt/shared/malora_jax
  python3 -m venv /tmp/venv && /tmp/venv/bin/pip install --quiet ".[tpu]"
  /tmp/venv/bin/python -m experiments.train --distributed \
    --config=configs/inter_domain.py:malora --workdir=/mnt/shared/runs/table1/malora \
    --config.model.dtype=bfloat16 --config.mesh.fsdp=16 \
    --config.data.batch_size=16 --config.data.streams=4'
