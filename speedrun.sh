#!/usr/bin/env bash
# From nothing to a model you can talk to: makes .venv, installs, runs recipes/town.yaml. No GPU, no data needed.
# About 15 minutes on two cores after the install. Stopped at any moment, the same command goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/venv.sh all
exec groundup run recipes/town.yaml "$@"
