//! Every built-in plugin.
