//! Wire messages and gRPC stubs, and their conversions to and from domain types.
