"""The program inside a sandbox: shells and files over HTTP. Started as `python -m sandbox`; see docs in `main.py`."""
