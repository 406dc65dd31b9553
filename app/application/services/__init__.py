"""The use cases of the service, each in the file of its name."""
