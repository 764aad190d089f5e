"""The asset graph, its checks and its metadata. Imports nothing from `serving_assets.sensors`."""
