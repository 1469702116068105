//! Black-box suites that reach the product through its front doors only.
