"""One file per runtime; `farthing.engines.base` says what an engine is."""
