"""The program inside a sandbox: shells, files, a browser and a desktop over HTTP. Start it with `python -m sandbox`."""
