"""What a clip brings: the manifest, and readers of the files that it names. Imports no stage, store or weights.

* ``manifest``: which recordings there are and which files belong to each; ``datasets`` finds them in folders;
* ``splits``: divides clips among train, val and test, so that no person is in two of them;
* ``media``: frames and sound of a movie; ``crops``: pictures of faces that replace its own;
* ``transcripts``, ``annotations``: words with times, labels of frames;
* ``parts``: which of these a stage reads, by the name that enters its fingerprint.
"""
