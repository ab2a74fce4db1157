"""How a run works: what is planned, computed, committed and recorded."""
