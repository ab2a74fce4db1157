"""``extract adapt``: trains an encoder further on a manifest's own clips; leaves a folder that ``weights:`` takes."""
