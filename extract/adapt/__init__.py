"""``extract adapt``: trains an encoder further on a manifest's own clips and leaves a folder that ``weights:`` takes."""
