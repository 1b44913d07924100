"""Becomes ``sitecustomize`` of the daemon and of its children: harm from within."""
