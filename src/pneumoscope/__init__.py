"""pneumoscope: pneumonia in chest imaging, from a scan to numbers and pictures, and from one hospital to the next.

Research software; not a medical device.
"""

__version__ = "0.1.0"
