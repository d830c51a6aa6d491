"""Contract suites, one a registry, for the parts here and for plug-ins."""
