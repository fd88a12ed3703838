"""Synthetic chest CTs with exact masks, from three made-up hospitals."""

from pneumoscope.datasets.phantom.folder import PhantomScan, make_phantom, read_phantom, scan_patient, write_phantom
from pneumoscope.datasets.phantom.sites import SITES

__all__ = ["SITES", "PhantomScan", "make_phantom", "read_phantom", "scan_patient", "write_phantom"]
