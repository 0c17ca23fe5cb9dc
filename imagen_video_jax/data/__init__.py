"""From any folder of videos to deterministic batches."""
