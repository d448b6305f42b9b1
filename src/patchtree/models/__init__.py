"""Models that read tokens; import them from their modules, `patchtree.models.segmenter` first."""
