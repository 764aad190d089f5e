"""The API and its peers on the same store, under the same load from wrk."""
