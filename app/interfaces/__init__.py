"""The service over HTTP: routes, streams, middleware and the wire format."""
