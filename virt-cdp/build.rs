//! Generates the gRPC code from `proto/virtcdp.proto`.

fn main() -> std::io::Result<()> {
    tonic_prost_build::compile_protos("proto/virtcdp.proto")
}
