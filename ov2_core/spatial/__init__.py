"""Spatial and tracking questions whose answers geometry proves. scene -> tasks -> checker -> balance; docs/spatial.md."""
