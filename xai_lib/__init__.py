"""Open companion to five papers on explainable AI for breast imaging: the module behind the six notebooks."""
