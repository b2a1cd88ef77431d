"""Signing with secrets and keeping them sealed."""
