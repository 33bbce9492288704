"""Mixture-of-experts architectures, a file each."""
