"""The verbs: a module or a folder each, with its arguments, its computation, its page and its template."""
