"""Mail as values: envelopes, addresses, dispositions, parsing. Pure: nothing here opens a file or a socket."""
