"""From raw videos to per-frame multimodal features in one resumable Zarr store."""
