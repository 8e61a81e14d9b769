//! Compiles our own `.proto` files without `protoc`; byte fields become `Bytes`, so decoding a request copies nothing.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = [
        "kv.proto",
        "rpc.proto",
        "lock.proto",
        "kvasir/command.proto",
        "kvasir/plugin.proto",
        "kvasir/peer.proto",
        "kvasir/cluster.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
