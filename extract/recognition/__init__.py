"""Speech recognition: which parts of a recording hold speech, and what is said in them."""
