"""What a clip brings: the manifest and the files that it names."""
