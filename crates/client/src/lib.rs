//! Client side of the Workload API and the server API.
