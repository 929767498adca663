//! Compiles the network contract; protox stands in for protoc, so that a fresh machine needs nothing but cargo.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(["proto/metaflow.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".metaflow.v1.Batch.payload")
        .codec_path("crate::codec::SmallCodec")
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto/metaflow.proto");
    Ok(())
}
