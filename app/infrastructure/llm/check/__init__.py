"""The check of a model and its server: `./run.sh check-model`."""
