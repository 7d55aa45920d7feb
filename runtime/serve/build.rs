//! Makes the messages and the service of `proto/inference.proto` (needs protoc, Debian: protobuf-compiler).

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure().bytes(".").compile_protos(&["proto/inference.proto"], &["proto"])
}
