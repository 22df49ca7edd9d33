"""What a run reads beside pixels: manifests, ids, text."""
