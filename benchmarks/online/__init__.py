"""Our API and its peers over the same store, asked the same questions by wrk."""
