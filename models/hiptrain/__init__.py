"""Training of hipscore's networks. The model bundle is its only way into the service."""
