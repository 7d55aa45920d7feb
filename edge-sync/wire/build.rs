//! Makes the messages and services of `proto/edge.proto` (needs protoc, Debian: protobuf-compiler).

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure().bytes(".").compile_protos(&["proto/edge.proto"], &["proto"])
}
