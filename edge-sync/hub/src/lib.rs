//! Hub and site: identity, the gRPC connection, and models that come down it.
