"""The JSON API under /v1. One file per noun; `routes` lists every path with the scope it needs."""
