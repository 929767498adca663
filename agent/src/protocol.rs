//! Application protocols: pure parsers and the list of them.
